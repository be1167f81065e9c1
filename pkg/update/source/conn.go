package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
)

// conn is one answer of a server, from the byte that was asked for.
type conn struct {
	ctx    context.Context // of the request; its cause tells a stall
	web    *web
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	watch  *watch
	head   []byte // read already
}

// dial asks for the rest of the file. Its error is final or worth another try.
func (r *webReader) dial() (_ *conn, err error) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	c := &conn{ctx: ctx, web: r.web, cancel: cancel, watch: newWatch(r.web.stall, func() { cancel(errStalled) })}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.String(), nil)
	if err != nil {
		return nil, final{err}
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "cairn/"+release.Version)
	if r.pos > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(r.pos, 10)+"-")
		if r.mark.strong() {
			req.Header.Set("If-Range", r.mark.etag)
		}
	}
	c.watch.start()
	resp, err := r.web.client.Do(req)
	c.watch.stop(0)
	if err != nil {
		return nil, c.classify(err)
	}
	c.body = resp.Body
	return c, r.accept(c, resp)
}

// accept takes up what the header says, and reads up to where the wanted bytes begin.
func (r *webReader) accept(c *conn, resp *http.Response) error {
	part, err := readHeader(resp, r.pos)
	if err != nil {
		return err
	}
	if part.begin == 0 {
		// First of all: a page has another size than the file, too.
		if err := c.sniff(resp.Header.Get("Content-Type")); err != nil {
			return err
		}
	}
	if part.size != unknown {
		if part.size > r.limit {
			return r.tooLarge(part.size)
		}
		if r.size != unknown && part.size != r.size || part.size < r.pos {
			return final{errWith(ErrChanged, "try again")}
		}
		r.size = part.size
	}
	if r.mark.differs(part.mark) {
		return final{errWith(ErrChanged, "try again")}
	}
	r.mark = r.mark.merge(part.mark)
	if part.begin == r.pos {
		return nil
	}
	return c.skip(r.pos)
}

// sniff looks at the first bytes of a file for a web page in its place.
func (c *conn) sniff(contentType string) error {
	buf := make([]byte, 1<<10)
	n, err := c.Read(buf)
	if isPage(contentType, buf[:n]) {
		return final{errWith(ErrWebPage, portal)}
	}
	c.head = buf[:n]
	if n > 0 || errors.Is(err, io.EOF) {
		return nil // what comes after the head comes again
	}
	return err
}

// skip passes over n bytes, which a server without ranges sends again.
func (c *conn) skip(n int64) error {
	_, err := io.CopyN(io.Discard, c, n)
	return err
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	if l := c.web.limiter; l != nil {
		p = p[:min(len(p), l.Burst())]
	}
	c.watch.start()
	n, err := c.body.Read(p)
	c.watch.stop(n)
	c.web.received.Add(int64(n))
	if l := c.web.limiter; l != nil && n > 0 {
		if waitErr := wait(c.ctx, l.ReserveN(time.Now(), n).Delay()); waitErr != nil {
			return n, waitErr
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.classify(err)
	}
	return n, err
}

func (c *conn) Close() {
	c.watch.stop(0)
	c.cancel(nil)
	if c.body != nil {
		c.body.Close() // nothing was written: there is no error that matters
	}
}

// wait returns after d, or with why ctx ended.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// watch calls expire when a connection brings less than progress bytes in its time. Time between stop and start does not
// count: then the reader waits for the rate limit or its own disk.
type watch struct {
	whole time.Duration
	left  time.Duration
	since time.Time
	timer *time.Timer
	bytes int
}

func newWatch(d time.Duration, expire func()) *watch {
	w := &watch{whole: d, left: d, timer: time.AfterFunc(d, expire)}
	w.timer.Stop()
	return w
}

func (w *watch) start() {
	w.since = time.Now()
	w.timer.Reset(w.left)
}

// stop says that n bytes came.
func (w *watch) stop(n int) {
	if !w.timer.Stop() {
		return // has expired, or was not running
	}
	if w.bytes += n; w.bytes >= progress {
		w.bytes, w.left = 0, w.whole
		return
	}
	w.left = max(w.left-time.Since(w.since), time.Nanosecond)
}

// isPage says whether a body that begins with head is a web page.
func isPage(contentType string, head []byte) bool {
	text := strings.ToLower(strings.TrimLeft(strings.TrimPrefix(string(head), "\ufeff"), " \t\r\n"))
	kind, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	if k := strings.TrimSpace(kind); k == "text/html" || k == "application/xhtml+xml" {
		return strings.HasPrefix(text, "<")
	}
	return strings.HasPrefix(text, "<!doctype html") || strings.HasPrefix(text, "<html")
}
