package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-os/cairn/pkg/update/source"
)

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	data := content()
	for name, data := range map[string][]byte{"metadata/timestamp.json": data, "empty": nil} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, "file://"+dir, nil)
	if got, err := source.Get(t.Context(), s, "metadata/timestamp.json", int64(len(data))); err != nil || !bytes.Equal(got, data) {
		t.Errorf("Get = %d bytes, %v", len(got), err)
	}
	if got, err := source.Get(t.Context(), s, "empty", 1); err != nil || len(got) != 0 {
		t.Errorf("Get of an empty file = %q, %v", got, err)
	}
	r, err := s.Fetch(t.Context(), "metadata/timestamp.json", 1000, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[1000:]) {
		t.Errorf("from 1000: %d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name, path string
		ctx        context.Context
		limit      int64
		kind       error
		text       string
	}{
		{"missing file", "metadata/7.root.json", t.Context(), 1 << 20, source.ErrNotFound, "copied"},
		{"too large", "metadata/timestamp.json", t.Context(), 100, source.ErrTooLarge, "bytes"},
		{"folder", "metadata", t.Context(), 1 << 20, nil, "no file but"},
		{"pipe", "pipe", t.Context(), 1 << 20, nil, "no file but"},
		{"out of the folder", "../x", t.Context(), 1 << 20, nil, "path"},
		{"ended", "empty", canceled, 1, context.Canceled, "canceled"},
	} {
		_, err := source.Get(c.ctx, s, c.path, c.limit)
		if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want an error of kind %v with %q", c.name, err, c.kind, c.text)
		}
	}
}

// TestStickGone: that the stick is out is another thing than that a file is not on it.
func TestStickGone(t *testing.T) {
	s := open(t, "file://"+filepath.Join(t.TempDir(), "usb"), nil)
	_, err := source.Get(t.Context(), s, "metadata/2.root.json", 1<<20)
	if !errors.Is(err, source.ErrUnavailable) || errors.Is(err, source.ErrNotFound) || !strings.Contains(err.Error(), "plugged in") {
		t.Errorf("error = %v", err)
	}
}

func TestFileShrinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, content(), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := open(t, "file://"+dir, nil).Fetch(t.Context(), "f", 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); !errors.Is(err, source.ErrChanged) || len(got) != 1000 {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}
