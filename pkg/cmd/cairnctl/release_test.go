package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/signing"
)

// releaseRun runs a command line on a machine that is no node.
func releaseRun(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), &stdout, &stderr, append([]string{"release"}, args...), paths{root: t.TempDir()})
	return code, stdout.String() + stderr.String()
}

func TestReleaseKeysAndVerify(t *testing.T) {
	keys, dir := filepath.Join(t.TempDir(), "keys"), t.TempDir()
	key := func(n string) string { return filepath.Join(keys, "root-"+n+".key") }
	steps := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"keys", "init", keys, "--roots", "2", "--threshold", "3"}, exitFailed, "threshold 3 of 2"},
		{[]string{"keys", "init", keys, "--roots", "3", "--threshold", "2"}, exitOK, "any 2 of them"},
		{[]string{"keys", "init", keys}, exitFailed, "rotate them instead"},
		{[]string{"keys", "rotate", keys, "--role", "root"}, exitUsage, "--replace and --new"},
		{[]string{"keys", "rotate", keys, "--role", "timestamp"}, exitOK, "sign-root"},
		{[]string{"keys", "sign-root", keys}, exitFailed, `"key" not set`},
		{[]string{"keys", "sign-root", keys, "--key", key("1")}, exitOK, "1 of 2 signatures"},
		{[]string{"keys", "sign-root", keys, "--key", key("3")}, exitOK, "the change counts"},
		{[]string{"verify", dir}, exitFailed, "1.root.json"},
		{[]string{"serve", dir}, exitFailed, "no release directory"},
	}
	for _, s := range steps {
		if code, out := releaseRun(t, s.args...); code != s.code || !strings.Contains(out, s.want) {
			t.Errorf("release %q: code %d\n%swant %d and %q", s.args, code, out, s.code, s.want)
		}
	}
	k, err := signing.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Publish(dir, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	if code, out := releaseRun(t, "verify", dir); code != exitOK || !strings.Contains(out, "own keys") {
		t.Errorf("verify by its own keys: code %d\n%s", code, out)
	}
	if code, out := releaseRun(t, "verify", dir, "--root", filepath.Join(keys, "1.root.json")); code != exitOK || !strings.Contains(out, "are right; valid until") {
		t.Errorf("verify from the first root on: code %d\n%s", code, out)
	}
	other := filepath.Join(t.TempDir(), "keys")
	if err := signing.Init(other, 1, 1, time.Now()); err != nil {
		t.Fatal(err)
	}
	if code, out := releaseRun(t, "verify", dir, "--root", filepath.Join(other, "1.root.json")); code != exitFailed || !strings.Contains(out, "not right") {
		t.Errorf("verify by other keys: code %d\n%s", code, out)
	}
}

func TestReleaseServe(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "chunks/0a0b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chunks/0a0b/x.cacnk"), []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(releaseHandler(dir))
	defer s.Close()
	for _, tt := range []struct {
		path, ranges string
		code         int
		body         string
	}{
		{"/chunks/0a0b/x.cacnk", "", http.StatusOK, "0123456789"},
		{"/chunks/0a0b/x.cacnk", "bytes=4-6", http.StatusPartialContent, "456"},
		{"/chunks/0a0b/x.cacnk", "bytes=7-", http.StatusPartialContent, "789"},
		{"/chunks/0a0b/", "", http.StatusNotFound, ""},
		{"/", "", http.StatusNotFound, ""},
		{"/../secret", "", http.StatusNotFound, ""},
		{"/chunks/none", "", http.StatusNotFound, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.ranges != "" {
			req.Header.Set("Range", tt.ranges)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.code || tt.body != "" && string(body) != tt.body {
			t.Errorf("GET %s %s: %d %q, %v; want %d %q", tt.path, tt.ranges, resp.StatusCode, body, err, tt.code, tt.body)
		}
	}
}
