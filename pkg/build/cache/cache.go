// Package cache keeps heavy build outputs (kernel, packages, images) outside
// the source tree, each in a directory named by the hash of everything it was
// made from. An entry that exists is complete: it is built in a temporary
// directory and renamed into place.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Cache is a directory of entries. Several processes may use one cache at the
// same time: a build of an entry holds that entry's lock file.
type Cache struct {
	dir string
}

// Open returns the cache at dir and creates it when it is missing. An empty
// dir means $CAIRN_CACHE, else $XDG_CACHE_HOME/cairn, else ~/.cache/cairn.
func Open(dir string) (*Cache, error) {
	if dir == "" {
		dir = os.Getenv("CAIRN_CACHE")
	}
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a cache directory: %w (set CAIRN_CACHE)", err)
		}
		dir = filepath.Join(base, "cairn")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &Cache{dir: dir}, nil
}

// Dir is the cache's own directory, for users that keep a store of another
// shape in it, such as downloaded packages named by their digest.
func (c *Cache) Dir() string { return c.dir }

// Key names an entry: a readable name and the hash of its inputs. Inputs must
// be added in a fixed order.
type Key struct {
	name string
	h    hash.Hash
}

// NewKey starts the key of an entry called name, which becomes the first part
// of its directory's name.
func NewKey(name string) *Key {
	return &Key{name: name, h: sha256.New()}
}

// String adds values, each kept apart from the next by its length.
func (k *Key) String(values ...string) {
	for _, v := range values {
		fmt.Fprintf(k.h, "s%d:%s", len(v), v)
	}
}

// File adds a file's content; its name and times do not count.
func (k *Key) File(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(k.h, "f%d:", info.Size())
	if _, err := io.Copy(k.h, f); err != nil {
		return fmt.Errorf("hash %s: %w", path, err)
	}
	return nil
}

// Tree adds every file below dir: relative names, types, link targets and
// contents, and whether the owner may execute it, in lexical order. Other
// permissions do not count: a checkout has them from its user's umask.
func (k *Key) Tree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		k.String(rel, keptMode(info.Mode()).String())
		switch {
		case info.Mode().IsRegular():
			return k.File(path)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			k.String(target)
		}
		return nil
	})
}

// keptMode is m with the permissions that git gives a file under umask 022.
func keptMode(m fs.FileMode) fs.FileMode {
	switch {
	case m&fs.ModeSymlink != 0:
		return m
	case m.IsDir() || m&0o100 != 0:
		return m.Type() | 0o755
	}
	return m.Type() | 0o644
}

// Sum is the hash of the inputs so far, in hex.
func (k *Key) Sum() string { return hex.EncodeToString(k.h.Sum(nil)) }

// Get returns the directory of k's entry. When there is none, build fills an
// empty temporary directory, which then becomes the entry; an error of build
// leaves nothing behind. The caller must not change what it gets.
func (c *Cache) Get(ctx context.Context, k *Key, build func(ctx context.Context, dir string) error) (string, error) {
	name := k.name + "-" + k.Sum()[:24]
	dir := filepath.Join(c.dir, name)
	if used(dir) {
		return dir, nil
	}
	unlock, err := Lock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if used(dir) {
		return dir, nil
	}
	tmp := filepath.Join(c.dir, ".tmp-"+name)
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	if err := build(ctx, tmp); err != nil {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			return "", fmt.Errorf("%s: %w (and its remains stay: %v)", k.name, err, rmErr)
		}
		return "", fmt.Errorf("%s: %w", k.name, err)
	}
	return dir, os.Rename(tmp, dir)
}

// used reports whether the entry exists, and marks it as used now, so that
// old entries can be told from live ones.
func used(dir string) bool {
	now := time.Now()
	return os.Chtimes(dir, now, now) == nil
}

// Lock takes an exclusive flock(2) on a file, which it creates, waiting until
// ctx ends. The kernel drops it when the process dies, so that a killed build
// blocks nobody.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
