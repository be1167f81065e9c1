package source_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/update/source"
)

// content is the file that every server here should give.
func content() []byte {
	data := make([]byte, 200<<10)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	return data
}

var modified = time.Unix(1767225600, 0)

// whole serves data as a good server does.
func whole(w http.ResponseWriter, r *http.Request, data []byte) {
	w.Header().Set("ETag", `"one"`)
	http.ServeContent(w, r, "f.bin", modified, bytes.NewReader(data))
}

// cut serves data as whole does and breaks the connection off after n bytes of it.
func cut(w http.ResponseWriter, r *http.Request, data []byte, n int) {
	whole(&cutter{ResponseWriter: w, left: n}, r, data)
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.ResponseWriter.Write(p[:n])
	c.left -= n
	if c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func page(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, text)
}

const welcome = "\n <!DOCTYPE html><html><body>Welcome to our WiFi" // as a portal answers

func open(t *testing.T, url string, change func(*source.Options)) source.Source {
	t.Helper()
	o := source.Options{URL: url, Stall: time.Second, Tries: 4, FirstWait: time.Millisecond, MaxWait: 4 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := source.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestServers reads one file from servers that misbehave, each in its way. n is the number of the request, from 1.
func TestServers(t *testing.T) {
	data := content()
	const limit = 256 << 10
	for _, c := range []struct {
		name  string
		serve func(w http.ResponseWriter, r *http.Request, n int)
		kind  error  // nil: the file arrives whole
		text  string // part of the error's text
	}{
		{name: "good", serve: func(w http.ResponseWriter, r *http.Request, n int) { whole(w, r, data) }},
		{name: "no length", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Write(data[:1000])
			w.(http.Flusher).Flush()
			w.Write(data[1000:])
		}},
		{name: "every second connection reset", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n%2 == 1 {
				panic(http.ErrAbortHandler)
			}
			cut(w, r, data, 30<<10)
		}},
		{name: "cut often", serve: func(w http.ResponseWriter, r *http.Request, n int) { cut(w, r, data, 5<<10) }},
		{name: "cut and no ETag", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			http.ServeContent(&cutter{w, 90 << 10}, r, "f.bin", time.Time{}, bytes.NewReader(data))
		}},
		{name: "range ignored", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			r.Header.Del("Range")
			cut(w, r, data, min(n*60<<10, len(data)+1))
		}},
		{name: "range ignored and no length", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Write(data[:min(n*60<<10, len(data))])
			if n < 4 {
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		}},
		{name: "parts", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			var from int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			to := min(from+50<<10, len(data))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(data[from:to])
		}},
		{name: "errors, then good", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n < 4 {
				http.Error(w, "busy", []int{500, 503, 429}[n-1])
				return
			}
			whole(w, r, data)
		}},
		{name: "stalls, then good", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			switch n {
			case 1: // before the header
				<-r.Context().Done()
			case 2: // within the body
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				w.Header().Set("ETag", `"one"`)
				w.Write(data[:70<<10])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			default:
				whole(w, r, data)
			}
		}},
		{name: "stalls for ever", kind: source.ErrUnavailable, text: "next to nothing came in 1s", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			<-r.Context().Done()
		}},
		{name: "slow drip", kind: source.ErrUnavailable, text: "next to nothing came", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			for i := 0; r.Context().Err() == nil; i++ {
				w.Write(data[i : i+1])
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		}},
		{name: "500 for ever", kind: source.ErrUnavailable, text: "status 500", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			http.Error(w, "no", 500)
		}},
		{name: "404", kind: source.ErrNotFound, text: "status 404", serve: func(w http.ResponseWriter, r *http.Request, n int) { http.NotFound(w, r) }},
		{name: "404 page", kind: source.ErrNotFound, text: "release directory", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(404)
			io.WriteString(w, welcome)
		}},
		{name: "403", kind: source.ErrRefused, text: "password", serve: func(w http.ResponseWriter, r *http.Request, n int) { http.Error(w, "no", http.StatusForbidden) }},
		{name: "407", kind: source.ErrRefused, text: "proxy", serve: func(w http.ResponseWriter, r *http.Request, n int) { http.Error(w, "no", http.StatusProxyAuthRequired) }},
		{name: "418", text: "status 418", serve: func(w http.ResponseWriter, r *http.Request, n int) { http.Error(w, "no", http.StatusTeapot) }},
		{name: "511", kind: source.ErrWebPage, text: "captive portal", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			http.Error(w, "no", http.StatusNetworkAuthenticationRequired)
		}},
		{name: "web page", kind: source.ErrWebPage, text: "captive portal", serve: func(w http.ResponseWriter, r *http.Request, n int) { page(w, welcome) }},
		{name: "long web page", kind: source.ErrWebPage, text: "captive portal", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			page(w, welcome+strings.Repeat(".", 2*limit))
		}},
		{name: "web page without its type", kind: source.ErrWebPage, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Type", "application/octet-stream")
			io.WriteString(w, "\ufeff<HTML><body>login")
		}},
		{name: "login in another place", kind: source.ErrWebPage, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if r.URL.Path != "/login" {
				http.Redirect(w, r, "/login", http.StatusFound)
				return
			}
			page(w, welcome)
		}},
		{name: "web page in the middle", kind: source.ErrWebPage, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				cut(w, r, data, 70<<10)
			}
			page(w, welcome)
		}},
		{name: "the file with a page's type", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Type", "text/html")
			whole(w, r, data)
		}},
		{name: "redirect", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if !strings.HasPrefix(r.URL.Path, "/mirror") {
				http.Redirect(w, r, "/mirror"+r.URL.Path, http.StatusFound)
				return
			}
			cut(w, r, data, 70<<10)
		}},
		{name: "redirect loop", text: "redirected more than 5 times", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}},
		{name: "too long, and says so", kind: source.ErrTooLarge, text: "262145", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			whole(w, r, make([]byte, limit+1))
		}},
		{name: "endless", kind: source.ErrTooLarge, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			for r.Context().Err() == nil {
				w.Write(data)
			}
		}},
		{name: "length larger than the file", kind: source.ErrUnavailable, text: "breaks off", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)+10))
			w.Write(data)
		}},
		{name: "shorter the second time", kind: source.ErrChanged, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n%2 == 1 {
				cut(w, r, data, 90<<10)
			}
			whole(w, r, data[:80<<10])
		}},
		{name: "longer the second time", kind: source.ErrChanged, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			http.ServeContent(&cutter{w, 90 << 10}, r, "f.bin", time.Time{}, bytes.NewReader(data[:len(data)-n%2]))
		}},
		{name: "another file the second time", kind: source.ErrChanged, serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
			http.ServeContent(&cutter{w, 90 << 10}, r, "f.bin", time.Time{}, bytes.NewReader(data))
		}},
		{name: "changes once", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				cut(w, r, append([]byte("old"), data...), 90<<10)
			}
			w.Header().Set("ETag", `"two"`)
			http.ServeContent(w, r, "f.bin", modified.Add(time.Hour), bytes.NewReader(data))
		}},
		{name: "another part", text: "another part", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			if n > 1 {
				r.Header.Set("Range", "bytes=5-")
			}
			r.Header.Del("If-Range")
			cut(w, r, data, 90<<10)
		}},
		{name: "compressed", text: "compressed", serve: func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(data)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, int(n.Add(1))) }))
			defer server.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, err := source.Get(ctx, open(t, server.URL+"/rel", nil), "chunks/f.bin", limit)
			if c.kind == nil && c.text == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("Get = %d bytes, %v; want the file", len(got), err)
				}
				return
			}
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Get = %d bytes, %v; want an error of kind %v with %q", len(got), err, c.kind, c.text)
			}
			t.Log(err)
			if n.Load() > 12 {
				t.Errorf("asked %d times", n.Load())
			}
		})
	}
}

func TestOffset(t *testing.T) {
	data := content()
	for _, ranges := range []bool{true, false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !ranges {
				r.Header.Del("Range")
			}
			whole(w, r, data)
		}))
		s := open(t, server.URL, nil)
		for _, offset := range []int{0, 1, 1024, 1025, 100 << 10, len(data) - 1, len(data)} {
			r, err := s.Fetch(t.Context(), "f.bin", int64(offset), int64(len(data)))
			if err != nil {
				t.Fatalf("from %d, ranges %v: %v", offset, ranges, err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data[offset:]) {
				t.Errorf("from %d, ranges %v: %d bytes, %v; want %d", offset, ranges, len(got), err, len(data)-offset)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		server.Close()
	}
}

// TestResumeAsksForTheRestOnly counts what comes over the line.
func TestResumeAsksForTheRestOnly(t *testing.T) {
	data := content()
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Header.Get("Range")+" "+r.Header.Get("If-Range")+" "+r.Header.Get("Accept-Encoding"))
		mu.Unlock()
		cut(w, r, data, 128<<10)
	}))
	defer server.Close()
	s := open(t, server.URL, nil)
	if _, err := source.Get(t.Context(), s, "f.bin", 1<<20); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 2 || asked[0] != "  identity" || asked[1] != `bytes=131072- "one" identity` {
		t.Errorf("asked for %q", asked)
	}
	if s.Received() != int64(len(data)) {
		t.Errorf("received %d bytes for a file of %d", s.Received(), len(data))
	}
}

// TestRate reads two files at once at a common limit.
func TestRate(t *testing.T) {
	data := content()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { whole(w, r, data) }))
	defer server.Close()
	// Much slower than Stall allows one file: waiting for the limit is no stall.
	s := open(t, server.URL, func(o *source.Options) { o.Rate = 400 << 10; o.Stall = 300 * time.Millisecond })
	begin := time.Now()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := source.Get(t.Context(), s, "f.bin", 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// 400 KiB less a burst of 50 KiB.
	if d := time.Since(begin); d < 800*time.Millisecond {
		t.Errorf("400 KiB at 400 KiB/s took %v", d)
	}
}

func TestContextEnds(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) }))
	defer server.Close()
	s := open(t, server.URL, func(o *source.Options) { o.FirstWait = time.Hour; o.MaxWait = time.Hour })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := source.Get(ctx, s, "f.bin", 1<<20)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("error = %v; want the deadline, and why it was waited", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	_, err := source.Get(t.Context(), open(t, server.URL, nil), "f.bin", 1<<20)
	if !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("error = %v", err)
	}
}

func TestCertificates(t *testing.T) {
	data := content()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/down/f.bin" {
			http.Redirect(w, r, "http://portal.example/", http.StatusFound)
			return
		}
		whole(w, r, data)
	}))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	known := func(o *source.Options) { o.Roots = roots }
	if got, err := source.Get(t.Context(), open(t, server.URL, known), "f.bin", 1<<20); err != nil || !bytes.Equal(got, data) {
		t.Errorf("with its authority: %v", err)
	}
	begin := time.Now()
	_, err := source.Get(t.Context(), open(t, server.URL, func(o *source.Options) { o.FirstWait = time.Hour }), "f.bin", 1<<20)
	if err == nil || !strings.Contains(err.Error(), "unknown authority") || time.Since(begin) > time.Minute {
		t.Errorf("without its authority: %v", err)
	}
	_, err = source.Get(t.Context(), open(t, server.URL+"/down", known), "f.bin", 1<<20)
	if err == nil || !strings.Contains(err.Error(), "unprotected address") {
		t.Errorf("down to http: %v", err)
	}
	other := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	_, err = source.Get(t.Context(), open(t, other, known), "f.bin", 1<<20)
	if err == nil || !strings.Contains(err.Error(), "another name") {
		t.Errorf("under another name: %v", err)
	}
}

// TestSecrets: user and password reach the server, and no text.
func TestSecrets(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "shop" || password != "s3cret" || r.URL.Path != "/a/f.bin" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	s := open(t, strings.Replace(server.URL, "http://", "http://shop:s3cret@", 1)+"/a", nil)
	_, err := source.Get(t.Context(), s, "f.bin", 10)
	if !errors.Is(err, source.ErrNotFound) {
		t.Errorf("error = %v; want that the server let us in", err)
	}
	if text := err.Error() + s.String(); strings.Contains(text, "shop") || strings.Contains(text, "s3cret") {
		t.Errorf("%s tells user or password", text)
	}
}

func TestBadOptions(t *testing.T) {
	for _, c := range []struct {
		o    source.Options
		want string
	}{
		{source.Options{URL: ""}, "scheme"},
		{source.Options{URL: "ftp://host/x"}, "scheme"},
		{source.Options{URL: "http://shop:secret@ho st/"}, "not a URL"},
		{source.Options{URL: "https:///x"}, "host"},
		{source.Options{URL: "file://stick/x"}, "three slashes"},
		{source.Options{URL: "http://host/x?y"}, "without ?"},
		{source.Options{URL: "http://host/x", Rate: 100}, "too low"},
		{source.Options{URL: "http://host/x", Rate: -1}, "too low"},
	} {
		if _, err := source.Open(c.o); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Open(%+v) = %v; want an error with %q", c.o, err, c.want)
		}
	}
	s := open(t, "http://127.0.0.1:1", nil)
	for _, c := range []struct {
		path          string
		offset, limit int64
	}{{"../x", 0, 1}, {"", 0, 1}, {"a b", 0, 1}, {"x", -1, 1}, {"x", 0, 0}, {"x", 2, 1}} {
		if _, err := s.Fetch(t.Context(), c.path, c.offset, c.limit); err == nil {
			t.Errorf("Fetch(%q, %d, %d) = nil; want an error", c.path, c.offset, c.limit)
		}
	}
}
