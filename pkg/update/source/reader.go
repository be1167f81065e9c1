package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"time"
)

const unknown = -1

// webReader reads one file over as many connections as it takes.
type webReader struct {
	ctx   context.Context
	web   *web
	url   *url.URL
	limit int64

	pos  int64 // the next byte of the file
	size int64 // of the whole file, once it is known
	mark mark  // what tells one content of the file from another
	conn *conn // nil: broken off
	// since counts the bytes of this connection. poor counts the connections in a row that brought next to nothing, cause
	// is why the last one broke.
	since, poor int64
	cause       error
	err         error // final
}

func (r *webReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.read(p)
	if err != nil {
		r.err = err
		r.drop()
	}
	return n, err
}

func (r *webReader) read(p []byte) (int, error) {
	for {
		if r.pos == r.size {
			return 0, io.EOF
		}
		if r.conn == nil {
			if err := r.connect(r.cause); err != nil {
				return 0, err
			}
			continue // the size may be known now
		}
		end := r.limit + 1 // one byte more than may come, to see that it does
		if r.size != unknown {
			end = r.size
		}
		n, err := r.conn.Read(p[:min(int64(len(p)), end-r.pos)])
		r.pos += int64(n)
		r.count(n)
		switch {
		case r.pos > r.limit:
			return 0, r.wrap(r.tooLarge(r.pos))
		case err == nil:
			if n > 0 {
				return n, nil
			}
		case errors.Is(err, io.EOF) && r.size == unknown:
			r.size = r.pos // the server never said how long, and says that this was all
			return n, io.EOF
		default:
			r.drop()
			r.cause = err
			if n > 0 {
				return n, nil // the next Read goes on, or meets the end
			}
		}
	}
}

// count forgets earlier failures once this connection was worth it.
func (r *webReader) count(n int) {
	if r.since += int64(n); r.since >= progress {
		r.poor = 0
	}
}

// connect opens a connection that begins at r.pos. It tries again until one opens, an answer is final, or too many in a
// row brought next to nothing. cause is why the one before it broke.
func (r *webReader) connect(cause error) error {
	for {
		if cause != nil {
			if err := r.pause(cause); err != nil {
				return err
			}
		}
		r.poor++
		conn, err := r.dial()
		if err == nil {
			r.conn, r.since = conn, 0
			return nil
		}
		if isFinal(err) {
			return r.wrap(err)
		}
		cause = err
	}
}

// pause waits before the next connection, or says that there will be none.
func (r *webReader) pause(cause error) error {
	if err := context.Cause(r.ctx); err != nil {
		return r.wrap(fmt.Errorf("%w: %w", err, explain(cause)))
	}
	if r.poor >= int64(r.web.tries) {
		return r.wrap(fmt.Errorf("%w: gave up after %d tries: %w", ErrUnavailable, r.poor, explain(cause)))
	}
	d := r.web.backOff(r.poor)
	var busy statusError
	if errors.As(cause, &busy) {
		d = max(d, busy.wait)
	}
	r.web.log.Info("release source broke off", "url", shown(r.url), "at", r.pos, "cause", cause, "wait", d)
	if err := wait(r.ctx, d); err != nil {
		return r.wrap(fmt.Errorf("%w: %w", err, explain(cause)))
	}
	return nil
}

// backOff is the time before the next try after n poor ones: it doubles, and half of it is by chance, so that the machines of
// a chain do not all come back at once.
func (w *web) backOff(n int64) time.Duration {
	d := min(w.first<<min(max(n-1, 0), 16), w.longest)
	return d/2 + rand.N(d/2+1)
}

func (r *webReader) drop() {
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}

func (r *webReader) wrap(err error) error { return fmt.Errorf("fetch %s: %w", shown(r.url), err) }

func (r *webReader) tooLarge(size int64) error {
	return final{fmt.Errorf("%w: it has %d bytes or more and may have %d: is the address that of a release directory?", ErrTooLarge, size, r.limit)}
}

// Close ends the connection. It must not run beside Read.
func (r *webReader) Close() error {
	r.drop()
	if r.err == nil {
		r.err = r.wrap(errors.New("closed"))
	}
	return nil
}
