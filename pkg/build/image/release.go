package image

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/releasedir"
	"github.com/cairn-os/cairn/pkg/build/signing"
)

func openKeys(ctx context.Context, dir string, c *cache.Cache) (*signing.Keys, error) {
	if dir != "" {
		return signing.Open(dir)
	}
	return signing.Development(ctx, c)
}

// anchor is a file with the root metadata that the image trusts.
func (b *Builder) anchor(ctx context.Context) (string, error) {
	text := b.keys.Anchor()
	k := cache.NewKey("update-root")
	k.String(string(text))
	dir, err := b.cache.Get(ctx, k, func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "root.json"), text, 0o644)
	})
	return filepath.Join(dir, "root.json"), err
}

// ReleaseOptions say how machines get to what is built.
type ReleaseOptions struct {
	Channel string   // whose newest version it becomes
	Floor   string   // of the channel; empty keeps what it has
	From    string   // the oldest version that may come here directly; empty means any
	Bases   []string // earlier release directories, for deltas
}

// Release builds the image and adds it to the release directory,
// out/<target>/release.
func (b *Builder) Release(ctx context.Context, o ReleaseOptions) (*releasedir.Report, error) {
	built, err := b.Image(ctx, false)
	if err != nil {
		return nil, err
	}
	return releasedir.Write(ctx, releasedir.Options{
		Dir: filepath.Join(b.Dir(), "release"), Target: b.o.Target, Info: built.Release, From: o.From,
		Boot: built.Boot, Root: built.Root, RootHash: built.RootHash, RootBlocks: built.RootBlocks,
		Channel: o.Channel, Floor: o.Floor, Bases: o.Bases, Keys: b.keys, Now: time.Now(),
	})
}
