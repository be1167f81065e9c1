package source

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// part is what a header says of the body behind it.
type part struct {
	begin int64 // the byte of the file with which the body begins
	size  int64 // of the whole file; unknown
	mark  mark
}

// mark tells one content of a file from another, as far as a server does (RFC 9110, sections 8.8 and 13.1.5).
type mark struct {
	etag, modified string
}

func (m mark) strong() bool { return strings.HasPrefix(m.etag, `"`) }

func (m mark) differs(o mark) bool {
	if m.etag != "" && o.etag != "" {
		return m.etag != o.etag
	}
	return m.modified != "" && o.modified != "" && m.modified != o.modified
}

func (m mark) merge(o mark) mark {
	return mark{cmp.Or(m.etag, o.etag), cmp.Or(m.modified, o.modified)}
}

// readHeader reads the answer to a request for the bytes from pos on.
func readHeader(resp *http.Response, pos int64) (part, error) {
	p := part{size: unknown, mark: mark{resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")}}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return p, final{fmt.Errorf("the server, or a proxy, compressed the answer (%s): switch that off for the release directory", printable(e))}
	}
	switch resp.StatusCode {
	case http.StatusOK:
		p.size = resp.ContentLength
		return p, nil
	case http.StatusPartialContent:
		begin, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || begin != pos {
			return p, final{fmt.Errorf("the server sends another part of the file (%s) than was asked for (from byte %d): "+
				"is a faulty proxy in between?", printable(resp.Header.Get("Content-Range")), pos)}
		}
		p.begin, p.size = begin, size
		return p, nil
	case http.StatusRequestedRangeNotSatisfiable:
		_, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if pos > 0 && ok && size == pos {
			p.begin, p.size = pos, size
			return p, nil
		}
		return p, final{errWith(ErrChanged, "it is shorter than before: try again")}
	}
	return p, statusOf(resp)
}

// contentRange reads "bytes 5-9/10", "bytes 5-9/*" and "bytes */10" (RFC 9110, section 14.4).
func contentRange(text string) (begin, size int64, ok bool) {
	text, found := strings.CutPrefix(text, "bytes ")
	span, total, cut := strings.Cut(text, "/")
	if !found || !cut {
		return 0, 0, false
	}
	size = unknown
	if total != "*" {
		if size, ok = natural(total); !ok {
			return 0, 0, false
		}
	}
	if span == "*" {
		return 0, size, size != unknown
	}
	first, last, cut := strings.Cut(span, "-")
	begin, ok = natural(first)
	end, endOK := natural(last)
	return begin, size, cut && ok && endOK && begin <= end && (size == unknown || end < size)
}

func natural(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0
}

// statusError is an answer without the file.
type statusError struct {
	code int
	text string
	kind error         // one of this package's, or nil
	wait time.Duration // that the server asks for
}

func (e statusError) Error() string {
	if e.kind != nil {
		return fmt.Sprintf("%v: status %d: %s", e.kind, e.code, e.text)
	}
	return fmt.Sprintf("status %d: %s", e.code, e.text)
}

func (e statusError) Unwrap() error { return e.kind }

// statusOf is the error that resp, which does not bring the file, stands for.
func statusOf(resp *http.Response) error {
	e := statusError{code: resp.StatusCode}
	switch c := resp.StatusCode; {
	case c == http.StatusNotFound || c == http.StatusGone:
		e.kind, e.text = ErrNotFound, "is the address that of a release directory, and was all of it copied to the server?"
	case c == http.StatusUnauthorized || c == http.StatusForbidden || c == http.StatusUnavailableForLegalReasons:
		e.kind, e.text = ErrRefused, "does the server want a user and password (https://USER:PASSWORD@HOST/...), or may nobody read the folder?"
	case c == http.StatusProxyAuthRequired:
		e.kind, e.text = ErrRefused, "the proxy wants a user and password: give them in the proxy's address (http://USER:PASSWORD@HOST:PORT)"
	case c == http.StatusNetworkAuthenticationRequired:
		e.kind, e.text = ErrWebPage, portal
	case c >= 500 || c == http.StatusRequestTimeout || c == http.StatusTooEarly || c == http.StatusTooManyRequests:
		e.text = "the server cannot answer now"
		if s, ok := natural(resp.Header.Get("Retry-After")); ok {
			e.wait = min(time.Duration(min(s, 3600))*time.Second, maxRetryAfter)
		}
		return e
	default:
		e.text = "that is no answer to a request for a file: is the address that of a release directory?"
	}
	return final{e}
}

// printable is a server's text, short and in quotes.
func printable(s string) string { return strconv.Quote(s[:min(len(s), 60)]) }
