package source

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxRedirects is enough for a mirror's choice, and few for a loop.
	maxRedirects = 5
	// progress is the number of bytes that make a connection worth another one.
	progress = 1 << 10
	// maxRetryAfter bounds what a server may ask for by Retry-After.
	maxRetryAfter = time.Minute
)

// web is a release directory on a web server.
type web struct {
	base     *url.URL
	client   *http.Client
	limiter  *rate.Limiter // nil: no limit
	stall    time.Duration
	tries    int
	first    time.Duration
	longest  time.Duration
	log      *slog.Logger
	received atomic.Int64
}

var _ Source = (*web)(nil)

func newWeb(u *url.URL, o Options) *web {
	w := &web{
		base: u, stall: cmp.Or(o.Stall, 30*time.Second), tries: cmp.Or(o.Tries, 8),
		first: cmp.Or(o.FirstWait, 500*time.Millisecond), longest: cmp.Or(o.MaxWait, 30*time.Second), log: o.Log,
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if o.Rate > 0 {
		// A burst of an eighth of a second keeps a till's packets from waiting behind ours.
		w.limiter = rate.NewLimiter(rate.Limit(o.Rate), int(min(max(o.Rate/8, progress), 256<<10)))
	}
	w.client = &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // bytes are counted, resumed and hashed as they are
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return w
}

func (w *web) String() string  { return shown(w.base) }
func (w *web) Received() int64 { return w.received.Load() }
func (w *web) Close()          { w.client.CloseIdleConnections() }

// shown is u without what may be secret.
func shown(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.Fragment = nil, "", ""
	return c.String()
}

func (w *web) Fetch(ctx context.Context, path string, offset, limit int64) (io.ReadCloser, error) {
	if err := checkRequest(path, offset, limit); err != nil {
		return nil, err
	}
	r := &webReader{ctx: ctx, web: w, url: w.base.JoinPath(path), pos: offset, limit: limit, size: unknown}
	if err := r.connect(nil); err != nil {
		return nil, err
	}
	return r, nil
}

// checkRedirect follows a server to another address, but not from an encrypted one to a plain one.
func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return final{fmt.Errorf("redirected more than %d times: is a login in between? Open the address in a browser on this network", maxRedirects)}
	}
	from, to := via[len(via)-1].URL, next.URL
	if to.Scheme == from.Scheme || from.Scheme == "http" && to.Scheme == "https" {
		return nil
	}
	return final{fmt.Errorf("redirected from %s to the unprotected address %s: is a captive portal or a login in between? "+
		"Else correct the redirection on the server", from.Host, shown(to))}
}

// final marks an error that another try would only repeat.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

func isFinal(err error) bool {
	var f final
	return errors.As(err, &f)
}
