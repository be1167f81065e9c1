// Package source reads the files of a release directory from where it lies: a web server or a folder.
//
// The line of a shop is slow, shared with the tills, and broken off at times; what sits in between answers in the name
// of the server. So a file read from a web server goes on where it broke off, any number of times as long as some of it
// still arrives, and a web page in place of the file is told as what it is. Nothing is trusted here: that what arrives is
// what was asked for, is for the reader to prove (pkg/update/trust, pkg/chunk).
package source

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
)

// Source is a release directory. It is safe for concurrent use.
type Source interface {
	// Fetch opens the file at path (see release.CheckPath) from the byte offset to its end. The whole file may have at
	// most limit bytes; one that has more is an error that wraps ErrTooLarge, as soon as that is known. Fetch returns when
	// the first byte is near. What breaks off after that is taken up again within Read, which waits for it; an error of
	// Read is final. Both end with ctx, so ctx must live as long as the reader.
	Fetch(ctx context.Context, path string, offset, limit int64) (io.ReadCloser, error)
	// String is the address for people, without user and password.
	String() string
	// Received is the number of bytes that came over the line so far for contents of files, those that were thrown away
	// included. Zero of a folder.
	Received() int64
	// Close drops the connections that wait for the next request.
	Close()
}

// What a caller may want to tell apart. The errors of Fetch, of Read and of Get wrap them; their text says what to do.
var (
	// ErrNotFound: the directory answers, and the file is not in it.
	ErrNotFound = errors.New("not there")
	// ErrRefused: the server will not give the file to us. Some give this answer for files that are not there.
	ErrRefused = errors.New("refused")
	// ErrWebPage: a page for people came in place of the file.
	ErrWebPage = errors.New("answered with a web page")
	// ErrTooLarge: the file has more bytes than the caller allows.
	ErrTooLarge = errors.New("too large")
	// ErrChanged: the file changed while it was read. Reading it anew may help.
	ErrChanged = errors.New("changed while it was read")
	// ErrUnavailable: the directory could not be reached, or not for long enough. Trying later may help.
	ErrUnavailable = errors.New("not available")
)

// Options are for Open. Zero values stand for what their comments say.
type Options struct {
	// URL is https://..., http://... or file:///...
	URL string
	// Rate is the number of bytes per second that all files together may take from the line, at least MinRate; 0 is no
	// limit. It does not apply to folders.
	Rate int64
	// Stall is the time in which a connection must bring at least 1 KiB, or what is left; else it counts as broken.
	// Default: 30 s.
	Stall time.Duration
	// Tries is the number of connections in a row that may bring less than 1 KiB before Read gives up. Default: 8.
	Tries int
	// FirstWait and MaxWait bound the time between tries, which doubles each time. Default: 0.5 s and 30 s.
	FirstWait, MaxWait time.Duration
	// Roots are the authorities to believe. Default: those of the system, to which a machine's own are added.
	Roots *x509.CertPool
	// Log gets what breaks off. Default: nowhere.
	Log *slog.Logger
}

// MinRate is the lowest Options.Rate: below it nothing would come to an end.
const MinRate = 1000

// Open returns the directory at o.URL, which need not be reachable yet.
func Open(o Options) (Source, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("open release source: not a URL: write https://HOST/PATH, http://HOST/PATH or file:///PATH")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return nil, errors.New("open release source: write the address without ? and # and what follows them")
	}
	if o.Rate != 0 && o.Rate < MinRate {
		return nil, fmt.Errorf("open release source: a rate limit of %d bytes per second is too low: set at least %d, or none", o.Rate, MinRate)
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return nil, errors.New("open release source: the address names no host: write https://HOST/PATH or http://HOST/PATH")
		}
		return newWeb(u, o), nil
	case "file":
		if u.Host != "" && u.Host != "localhost" || u.Path == "" {
			return nil, errors.New("open release source: the address names no folder of this machine: write file:///PATH, with three slashes")
		}
		return folder{u.Path}, nil
	}
	return nil, fmt.Errorf("open release source: scheme %q is not known: write https://HOST/PATH, http://HOST/PATH or file:///PATH", u.Scheme)
}

// Get reads the whole file at path, of at most limit bytes. It begins anew when the file changes meanwhile.
func Get(ctx context.Context, s Source, path string, limit int64) ([]byte, error) {
	const tries = 3
	for try := 1; ; try++ {
		data, err := get(ctx, s, path, limit)
		if err == nil || !errors.Is(err, ErrChanged) || try == tries {
			return data, err
		}
	}
}

func get(ctx context.Context, s Source, path string, limit int64) ([]byte, error) {
	r, err := s.Fetch(ctx, path, 0, limit)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// checkRequest refuses what no file of a release can be.
func checkRequest(path string, offset, limit int64) error {
	if err := release.CheckPath(path); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if offset < 0 || limit <= 0 || offset > limit {
		return fmt.Errorf("fetch %s: byte %d of at most %d: no such byte", path, offset, limit)
	}
	return nil
}
