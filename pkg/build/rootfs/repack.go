package rootfs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/release"
)

// Repack makes an image in the folder dir of a tree that is not the cache's: a copy of a Root's Tree in which some files
// differ.
func Repack(ctx context.Context, c *cache.Cache, archive *debian.Archive, tree, dir string) (*Root, error) {
	info, err := release.Load(filepath.Join(tree, release.Path))
	if err != nil {
		return nil, fmt.Errorf("repack: %w", err)
	}
	tools, err := openTools(ctx, Options{Cache: c, Archive: archive})
	if err != nil {
		return nil, fmt.Errorf("repack: %w", err)
	}
	r := &Root{Tree: tree, Image: filepath.Join(dir, imageName)}
	id := sha256.Sum256([]byte(info.Version))
	if err := makeErofs(ctx, tools, tree, r.Image, erofsID{info.BuildTime, [16]byte(id[:16])}); err != nil {
		return nil, fmt.Errorf("repack: %w", err)
	}
	facts, err := appendVerity(ctx, r.Image)
	if err != nil {
		return nil, fmt.Errorf("repack: %w", err)
	}
	r.Blocks, r.RootHash = facts.Blocks, facts.RootHash
	return r, nil
}
