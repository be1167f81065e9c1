package signing

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
)

// Development returns the keys of this build machine and makes them at first
// use. They vouch for nothing but that a release comes from here: all of them,
// root's too, lie side by side in the cache.
func Development(ctx context.Context, c *cache.Cache) (*Keys, error) {
	// Not one of the cache's entries: those may be thrown away and made again.
	dir := filepath.Join(c.Dir(), "release-keys")
	unlock, err := cache.Lock(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	k, err := Open(dir)
	if err == nil {
		return k, nil
	}
	if _, rootErr := readRoots(dir); rootErr == nil {
		return nil, err
	}
	made := dir + ".new"
	if err := os.RemoveAll(made); err != nil { // of a build that was cut off
		return nil, err
	}
	if err := Init(made, 1, 1, time.Now()); err != nil {
		return nil, err
	}
	if err := os.Rename(made, dir); err != nil {
		return nil, err
	}
	return Open(dir)
}
