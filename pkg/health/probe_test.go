package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/config"
)

// probe makes one look of a probe, by way of a Judge.
func probe(t *testing.T, p config.Probe) Check {
	t.Helper()
	p.Name = "till"
	j, err := New(Options{Health: config.Health{Probes: []config.Probe{p}}})
	if err != nil {
		t.Fatal(err)
	}
	c := j.Look(t.Context())[0]
	if c.Name != "probe till" || strings.Contains(c.Text, "hunter2") {
		t.Errorf("found %+v", c)
	}
	return c
}

func TestHTTP(t *testing.T) {
	release := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch user, password, _ := r.BasicAuth(); {
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/ok?secret=hunter2", http.StatusFound)
		case r.URL.Path == "/secret" && (user != "u" || password != "hunter2"):
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/site" && r.Host != "till.example.com":
			http.Error(w, "no site "+r.Host, http.StatusNotFound)
		case r.URL.Path == "/site" && r.TLS != nil && r.TLS.ServerName != r.Host:
			http.Error(w, "a certificate of "+r.TLS.ServerName, http.StatusMisdirectedRequest)
		case r.URL.Path == "/broken":
			http.Error(w, "database is\ngone\x1b[31m", http.StatusServiceUnavailable)
		case r.URL.Path == "/empty":
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case r.URL.Path == "/cut":
			panic(http.ErrAbortHandler)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer plain.Close()
	defer secure.Close()
	defer close(release)
	with := func(user string) string { return strings.Replace(plain.URL, "://", "://"+user+"@", 1) }
	for _, tt := range []struct {
		p    config.HTTPProbe
		want string
		ok   bool
	}{
		{config.HTTPProbe{URL: plain.URL + "/ok?token=hunter2"}, plain.URL + "/ok answers 200 OK", true},
		{config.HTTPProbe{URL: plain.URL + "/empty"}, plain.URL + "/empty answers 204 No Content", true},
		{config.HTTPProbe{URL: plain.URL + "/empty", Status: 200}, plain.URL + "/empty answers 204 No Content; want 200", false},
		{config.HTTPProbe{URL: plain.URL + "/moved", Status: 302}, plain.URL + "/moved answers 302 Found", true},
		{config.HTTPProbe{URL: plain.URL + "/broken"}, plain.URL + "/broken answers 503 Service Unavailable (database is gone[31m)", false},
		{config.HTTPProbe{URL: with("u:hunter2") + "/secret"}, plain.URL + "/secret answers 200 OK", true},
		{config.HTTPProbe{URL: with("hunter2") + "/secret"}, plain.URL + "/secret answers 401 Unauthorized", false},
		{config.HTTPProbe{URL: plain.URL + "/site", Host: "till.example.com"}, plain.URL + "/site answers 200 OK", true},
		{config.HTTPProbe{URL: secure.URL + "/site", Host: "till.example.com", Insecure: true}, secure.URL + "/site answers 200 OK", true},
		{config.HTTPProbe{URL: secure.URL + "/ok", Insecure: true}, secure.URL + "/ok answers 200 OK", true},
		{config.HTTPProbe{URL: secure.URL + "/ok"}, secure.URL + "/ok: tls: failed to verify certificate: x509: certificate signed by unknown authority", false},
		{config.HTTPProbe{URL: strings.Replace(secure.URL, "https", "http", 1)}, "", false},
		{config.HTTPProbe{URL: with("u:hunter2") + "/cut"}, plain.URL + "/cut: EOF", false},
		{config.HTTPProbe{URL: "http://u:hunter2@127.0.0.1:1/x?y=hunter2"}, "http://127.0.0.1:1/x: dial tcp 127.0.0.1:1: connect: connection refused", false},
	} {
		if c := probe(t, config.Probe{HTTP: tt.p}); c.OK != tt.ok || c.Text != tt.want && tt.want != "" {
			t.Errorf("%+v: %v, %q; want %v, %q", tt.p, c.OK, c.Text, tt.ok, tt.want)
		}
	}
	// A redirect's target is not told, and not asked.
	if c := probe(t, config.Probe{HTTP: config.HTTPProbe{URL: plain.URL + "/moved"}}); c.OK || c.Text != plain.URL+"/moved answers 302 Found" {
		t.Errorf("redirect: %+v", c)
	}
	begin := time.Now()
	if c := probe(t, config.Probe{HTTP: config.HTTPProbe{URL: plain.URL + "/slow"}, TimeoutText: "200ms"}); c.OK || c.Text != plain.URL+"/slow: no answer in time" || time.Since(begin) > 2*time.Second {
		t.Errorf("slow: %+v after %s", c, time.Since(begin))
	}
}

func TestTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	if c := probe(t, config.Probe{TCP: address}); !c.OK || c.Text != address+" takes connections" {
		t.Errorf("found %+v", c)
	}
	ln.Close()
	if c := probe(t, config.Probe{TCP: address}); c.OK || !strings.HasSuffix(c.Text, "connection refused") {
		t.Errorf("nobody listens: %+v", c)
	}
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name string
		argv []string
		want string
		ok   bool
	}{
		{"good", []string{"/bin/sh", "-c", "exit 0"}, "ended with 0", true},
		{"good with words", []string{"/bin/echo", "all", "well"}, "ended with 0: all well", true},
		{"bad", []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, "ended with 3: out err", false},
		{"killed", []string{"/bin/sh", "-c", "kill -TERM $$"}, "ended by signal: terminated", false},
		{"environment", []string{"/bin/sh", "-c", "echo $HOME $PWD $HTTPS_PROXY"}, "ended with 0: /root /", true},
		{"no program", []string{dir + "/none"}, dir + "/none cannot be run: no such file or directory", false},
		{"no interpreter", []string{write("script", "#!"+dir+"/none\n", 0o755)}, dir + "/script cannot be run: no such file or directory", false},
		{"not executable", []string{write("text", "hello", 0o644)}, dir + "/text cannot be run: permission denied", false},
		{"no binary", []string{write("junk", "\x7fELFjunk", 0o755)}, dir + "/junk cannot be run: exec format error", false},
		{"much", []string{"/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo the end; exit 1"}, "", false},
	} {
		c := probe(t, config.Probe{Exec: tt.argv})
		if c.OK != tt.ok || c.Text != tt.want && tt.want != "" || c.Permanent {
			t.Errorf("%s: %v, %q; want %v, %q", tt.name, c.OK, c.Text, tt.ok, tt.want)
		}
		if tt.name == "much" && (!strings.HasPrefix(c.Text, "ended with 1: ") || !strings.HasSuffix(c.Text, "line 2999 the end") || len(c.Text) > MaxText) {
			t.Errorf("much: %q", c.Text)
		}
	}
}

// TestExecHang: all that the command started ends with its time, and what it leaves behind ends with it.
func TestExecHang(t *testing.T) {
	t.Parallel()
	child := filepath.Join(t.TempDir(), "child")
	for _, tt := range []struct{ name, command, want string }{
		{"hangs", "echo begun; sleep 1000 & echo $! > " + child + "; wait", "did not end in time: begun"},
		{"deaf", "trap '' TERM INT HUP; echo begun; sleep 1000 & echo $! > " + child + "; wait; wait", "did not end in time: begun"},
		{"leaves something", "sleep 1000 & echo $! > " + child, "ended with 0"},
	} {
		begin := time.Now()
		c := probe(t, config.Probe{Exec: []string{"/bin/sh", "-c", tt.command}, TimeoutText: "500ms"})
		if c.Text != tt.want || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: %+v after %s; want %q", tt.name, c, time.Since(begin), tt.want)
		}
		data, err := os.ReadFile(child)
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Sscan(string(data), &pid); err != nil {
			t.Fatal(err)
		}
		for !gone(pid) {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("%s: process %d lives on", tt.name, pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// gone says whether a process ended; an orphan may stay a zombie where nobody reaps.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || strings.Contains(string(stat), ") Z ")
}

// TestLasting: what cannot be run from a file system that cannot be written will not be run in this boot.
func TestLasting(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("#!/none\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var asked []string
	for _, fixed := range []bool{false, true} {
		for _, tt := range []struct {
			path string
			err  error
			want bool
			on   string
		}{
			{dir + "/a/b/none", &fs.PathError{Err: unix.ENOENT}, true, dir},
			{"/none-of-this-name", &fs.PathError{Err: unix.ENOENT}, true, "/"},
			{file, &fs.PathError{Err: unix.ENOENT}, false, ""}, // its interpreter
			{file, &fs.PathError{Err: unix.ENOEXEC}, true, file},
			{file, &fs.PathError{Err: unix.EACCES}, true, file},
			{file, &fs.PathError{Err: unix.EAGAIN}, false, ""},
			{file, errors.New("anything"), false, ""},
		} {
			asked = nil
			got := lasting(tt.err, tt.path, func(path string) bool { asked = append(asked, path); return fixed })
			if got != (tt.want && fixed) || tt.on != "" && (len(asked) != 1 || asked[0] != tt.on) {
				t.Errorf("lasting(%v, %s) = %v, asked of %v; want %v", tt.err, tt.path, got, asked, tt.want && fixed)
			}
		}
	}
	f := execute(t.Context(), []string{dir + "/none"}, func(string) bool { return true })
	if !f.Permanent || f.OK {
		t.Errorf("found %+v; want it permanent", f)
	}
	if readOnly(dir) || readOnly(dir+"/none") {
		t.Errorf("%s is said to be read-only", dir)
	}
}

// TestWhole judges a machine by everything there is, by the real clock and over real connections.
func TestWhole(t *testing.T) {
	t.Parallel()
	api := newAPI(t)
	api.pods["shop app=till"] = podJSON("a")
	site := httptest.NewServer(http.NotFoundHandler())
	defer site.Close()
	var index uint64
	opt := Options{
		NodeName: "till-1", API: api.access, ControlPlane: api.access,
		Node: func() Node { n := Node{Seen: true}; n.Ready = true; return n },
		Store: func(context.Context) (Store, error) {
			index++
			return Store{Leader: true, Quorum: true, Voters: 1, Online: 1, Index: index}, nil
		},
		Health: config.Health{
			SettleText: "1s", CriticalPods: []config.CriticalPods{{Namespace: "shop", Selector: "app=till"}},
			Probes: []config.Probe{
				{Name: "site", HTTP: config.HTTPProbe{URL: site.URL, Status: 404}},
				{Name: "port", TCP: strings.TrimPrefix(site.URL, "http://")},
				{Name: "program", Exec: []string{"/bin/true"}},
			},
		},
		Progress: func(p Progress) { t.Log(p.Text) },
	}
	j, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	v, err := j.Run(t.Context(), time.Minute)
	if err != nil || !v.Healthy || len(v.Evidence) != 7 {
		t.Errorf("Run() = %+v, %v; want it healthy by 7 checks", v, err)
	}
	t.Log(v.Reason)
	for _, c := range v.Evidence {
		t.Logf("%s: %s", c.Name, c.Text)
	}
	opt.Health.CriticalPods = nil
	api.pods["kube-system"] = podJSON("b", notReady(crashLoop, crashed, 4)...)
	if j, err = New(opt); err != nil {
		t.Fatal(err)
	}
	v, err = j.Run(t.Context(), 2*time.Second)
	if want := "not healthy in time: store: applied index is not seen to move yet; critical pods kube-system: b: CrashLoopBackOff, the last time with exit code 3"; err != nil || v.Healthy || v.Reason != want {
		t.Errorf("Run() = %+v, %v; want %s", v, err, want)
	}
}

func TestCause(t *testing.T) {
	err := &url.Error{Op: "Get", URL: "http://u:hunter2@a/?b=hunter2", Err: errors.New("it broke")}
	if got := cause(t.Context(), fmt.Errorf("ask: %w", err)); got != "it broke" {
		t.Errorf("cause() = %q", got)
	}
}
