package logfile

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestCopyLines(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "store.log.1"), "one\ntwo\n")
	write(t, filepath.Join(dir, "store.log"), "three\nfour\n")
	for _, tt := range []struct {
		lines int
		want  string
	}{
		{-1, "one\ntwo\nthree\nfour\n"}, {0, ""}, {1, "four\n"}, {2, "three\nfour\n"}, {3, "two\nthree\nfour\n"}, {9, "one\ntwo\nthree\nfour\n"},
	} {
		var out strings.Builder
		if err := Copy(t.Context(), &out, dir, "store", Options{Lines: tt.lines}); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.want {
			t.Errorf("Copy(%d lines) = %q; want %q", tt.lines, out.String(), tt.want)
		}
	}
	for _, name := range []string{"nobody", "", "..", "../log/store", ".store"} {
		if err := Copy(t.Context(), io.Discard, dir, name, Options{}); !errors.Is(err, ErrUnknown) {
			t.Errorf("Copy(%q) = %v; want ErrUnknown", name, err)
		}
	}
}

func TestFollowThroughRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store.log")
	write(t, path, "old\nnewest\n")
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Copy(ctx, w, dir, "store", Options{Lines: 1, Follow: true})
		w.Close()
	}()
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("read %q, %v; want %q", buf, err, want)
		}
	}
	expect("newest\n")
	write(t, path, "added\n")
	expect("added\n")
	write(t, path, "last of the old file\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path, "first of the new\n")
	expect("last of the old file\nfirst of the new\n")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Copy() = %v at the end of its context", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Copy did not heed its context")
	}
}
