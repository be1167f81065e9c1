package airgap

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// memory is a runtime's image store; an archive is a list of names.
type memory struct {
	images   map[string]bool
	imported int
}

func (m *memory) Import(_ context.Context, r io.Reader, _ []string) ([]string, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(data), "junk") {
		return nil, errors.New("no archive")
	}
	names := strings.Fields(string(data))
	for _, n := range names {
		m.images[n] = true
	}
	if len(names) > 0 {
		m.imported++
	}
	return names, nil
}

func (m *memory) Has(_ context.Context, name string) (bool, error) { return m.images[name], nil }

func TestImporter(t *testing.T) {
	dir := t.TempDir()
	store := &memory{images: map[string]bool{}}
	run := func(wantImports int, bad ...string) {
		t.Helper()
		store.imported = 0
		im := Importer{
			Images: store, Dirs: []string{filepath.Join(dir, "a"), filepath.Join(dir, "missing")},
			State: filepath.Join(dir, "state.json"), Log: slog.New(slog.DiscardHandler),
		}
		err := im.Run(t.Context())
		if (err != nil) != (len(bad) > 0) {
			t.Errorf("Run = %v; want errors about %v", err, bad)
		}
		for _, b := range bad {
			if err != nil && !strings.Contains(err.Error(), b) {
				t.Errorf("Run = %v; want it to name %s", err, b)
			}
		}
		if store.imported != wantImports {
			t.Errorf("%d imports; want %d", store.imported, wantImports)
		}
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, "a", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		// Reproducible files have one time: content must count.
		if err := os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	run(0)
	write("one.tar", "x:1")
	write("two.tar.gz", "y:1 y:2")
	write("three.tar.zst", "z:1")
	write("notes.txt", "n:1")
	run(3)
	run(0)
	write("one.tar", "x:2") // same size, same time
	run(1)
	delete(store.images, "y:2") // the kubelet made room
	run(1)
	write("bad.tar", "junk")
	write("empty.tar", "")
	run(0, "bad.tar", "empty.tar")
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(3, "bad.tar", "empty.tar")
	if err := os.Remove(filepath.Join(dir, "a", "one.tar")); err != nil {
		t.Fatal(err)
	}
	run(0, "bad.tar", "empty.tar")
	write("one.tar", "x:2")
	run(1, "bad.tar", "empty.tar")
	if store.images["n:1"] {
		t.Error("a file that is no archive was imported")
	}
}

func TestMarkOfLargeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(digestLimit + 1); err != nil {
		t.Fatal(err)
	}
	before, err := markOf(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	if after, err := markOf(f); err != nil || after == before {
		t.Errorf("mark stays %q after a change of time, %v", after, err)
	}
}
