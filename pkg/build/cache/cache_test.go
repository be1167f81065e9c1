package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestGetBuildsOnce(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var builds atomic.Int32
	build := func(_ context.Context, dir string) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dir, "out"), []byte("x"), 0o644)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			k := NewKey("thing")
			k.String("a", "b")
			dir, err := c.Get(t.Context(), k, build)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "out")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("four concurrent Gets built %d times; want 1", n)
	}
}

func TestGetLeavesNothingAfterAnError(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no compiler")
	_, err = c.Get(t.Context(), NewKey("thing"), func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("Get = %v; want %v", err, broken)
	}
	left, err := filepath.Glob(filepath.Join(dir, "thing-*[0-9a-f]"))
	if err != nil || len(left) > 0 {
		t.Errorf("entries after a failed build: %v, %v; want none", left, err)
	}
}

func TestKeys(t *testing.T) {
	sum := func(values ...string) string {
		k := NewKey("k")
		k.String(values...)
		return k.Sum()
	}
	if sum("ab", "c") == sum("a", "bc") {
		t.Error("values run into each other")
	}
	tree := t.TempDir()
	treeSum := func() string {
		k := NewKey("k")
		if err := k.Tree(tree); err != nil {
			t.Fatal(err)
		}
		return k.Sum()
	}
	path := filepath.Join(tree, "f")
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := treeSum()
	if err := os.WriteFile(path, []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if treeSum() == before {
		t.Error("a changed file leaves the tree's key as it was")
	}
	changed := treeSum()
	if err := errors.Join(os.Chmod(path, 0o660), os.Chmod(tree, 0o770)); err != nil {
		t.Fatal(err)
	}
	if treeSum() != changed {
		t.Error("another umask gives the tree another key")
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if treeSum() == changed {
		t.Error("a file that became a program leaves the tree's key as it was")
	}
}
