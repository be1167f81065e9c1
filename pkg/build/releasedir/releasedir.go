// Package releasedir makes release directories: what machines upgrade from, on
// any web server or USB stick.
//
// A directory has chunks/, which pkg/chunk describes, targets/ with the signed
// files of each version (pkg/release: manifest and indexes; pkg/chunk: sizes and
// deltas) and of each channel, and metadata/, by which The Update Framework's
// clients find and believe them. It may hold several versions, and several
// targets. The same inputs, keys and time give the same bytes.
//
// A directory is valid at each moment while it is written: chunks come first,
// then target files under names that hold their digests, then metadata, and
// timestamp.json, which makes them count, last. What nothing names any more is
// removed after that.
package releasedir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// blockSize is that of the root's file system and of its verity tree.
const blockSize = 4096

// Options describe a release and where it goes.
type Options struct {
	Dir    string // the release directory; it is made when it is missing
	Target string // "amd64"
	Info   release.Info
	// From is the oldest version from which a machine may come here directly;
	// empty for any.
	From string

	Boot     string // path of the boot image
	Root     string // path of the root image with its verity tree
	RootHash string // of the tree, in hexadecimal
	// RootBlocks is the size of the file system before the tree, in blocks of
	// 4096 bytes.
	RootBlocks int64

	Channel string // whose newest version this becomes; empty means none
	Floor   string // of the channel; empty keeps what it has
	// Bases are earlier release directories. The newest other version of the
	// target in each of them, and in Dir, is one that machines come from:
	// deltas against it are added.
	Bases []string

	Keys *signing.Keys
	Now  time.Time // of the metadata's versions and ends
}

// Write adds a release to a directory. A version that is there already is
// replaced if it is a pre-release; another one stays what it is for ever.
func Write(ctx context.Context, o Options) (_ *Report, err error) {
	defer progress.FromContext(ctx).Start("release: write").Done(&err)
	m, images, err := o.manifest()
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	r, err := o.write(ctx, m, images)
	if err != nil {
		return nil, fmt.Errorf("release %s in %s: %w", o.Info.Version, o.Dir, err)
	}
	return r, nil
}

func (o Options) write(ctx context.Context, m release.Manifest, images []*image) (*Report, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	before, err := openDirectory(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := before.mayReplace(m); err != nil {
		return nil, err
	}
	bases, err := o.bases(before)
	if err != nil {
		return nil, err
	}
	files := before.filesOf(o.Target, m.Version) // nil: those of a version that is replaced
	r := &Report{Target: o.Target, Version: m.Version}
	store := chunk.NewStore(o.Dir)
	for _, i := range images {
		if err := i.store(ctx, store, files); err != nil {
			return nil, fmt.Errorf("image %s: %w", i.Name, err)
		}
		r.Size += i.Size
		r.Full += i.full()
	}
	for _, b := range bases {
		u := Update{From: b.manifest.Version}
		for _, i := range images {
			if err := i.addDeltas(ctx, store, b, files, &u); err != nil {
				return nil, fmt.Errorf("deltas of %s from version %s: %w", i.Name, u.From, err)
			}
		}
		r.Updates = append(r.Updates, u)
	}
	if err := o.addDocuments(before, m, files); err != nil {
		return nil, err
	}
	if err := o.Keys.Publish(o.Dir, files, o.Now); err != nil {
		return nil, err
	}
	return r, prune(o.Dir)
}

// manifest reads the images and describes them.
func (o Options) manifest() (release.Manifest, []*image, error) {
	m := release.Manifest{Info: o.Info, Target: o.Target, From: o.From, Config: release.ConfigSchema}
	boot, err := o.image(release.BootImage, o.Boot)
	if err != nil {
		return m, nil, err
	}
	root, err := o.image(release.RootImage, o.Root)
	if err != nil {
		return m, nil, err
	}
	// The block behind the file system is verity's superblock, from which the
	// machine learns the salt; what follows it can compute.
	root.Data, root.RootHash = (o.RootBlocks+1)*blockSize, o.RootHash
	if root.Data > root.Size {
		return m, nil, fmt.Errorf("image %s: %d bytes; want more than %d blocks", o.Root, root.Size, o.RootBlocks)
	}
	root.content = root.content[:root.Data]
	m.Images = []release.Image{boot.Image, root.Image}
	return m, []*image{boot, root}, m.Check()
}

func (o Options) image(name, path string) (*image, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum, size := sha256.Sum256(content), int64(len(content))
	return &image{content: content, Image: release.Image{
		Name: name, Size: size, Data: size, SHA256: hex.EncodeToString(sum[:]), Index: release.IndexPath(o.Target, o.Info.Version, name),
	}}, nil
}

// addDocuments adds the manifest and the channel.
func (o Options) addDocuments(before directory, m release.Manifest, files map[string][]byte) error {
	text, err := m.Encode()
	if err != nil {
		return err
	}
	files[release.ManifestPath(o.Target, m.Version)] = text
	if o.Channel == "" {
		return nil
	}
	if err := release.CheckName(o.Channel); err != nil {
		return fmt.Errorf("channel: %w", err)
	}
	c, err := before.channel(o.Target, o.Channel)
	if err != nil {
		return err
	}
	if release.Compare(m.Version, c.Version) < 0 {
		return fmt.Errorf("channel %s is at version %s already: releases of a channel only go up", o.Channel, c.Version)
	}
	c.Version = m.Version
	if o.Floor != "" {
		if c.Floor != "" && release.Compare(o.Floor, c.Floor) < 0 {
			return fmt.Errorf("channel %s has the floor %s, which never goes down", o.Channel, c.Floor)
		}
		c.Floor = o.Floor
	}
	if text, err = c.Encode(); err != nil {
		return err
	}
	files[release.ChannelPath(o.Target, o.Channel)] = text
	return nil
}

// Report says what a release weighs, in bytes.
type Report struct {
	Target, Version string
	Size            int64 // of its images
	Full            int64 // download of all chunks
	Updates         []Update
}

// Update is what a machine downloads that runs an earlier version.
type Update struct {
	From   string
	Reused int64 // part of the images that it has already
	Chunks int64 // download of the rest without deltas
	Deltas int64 // download with them
}

// String is a table for people.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Release %s for %s: images of %.1f MB\n", r.Version, r.Target, mb(r.Size))
	fmt.Fprintf(&b, "  full download                        %8.1f MB\n", mb(r.Full))
	for _, u := range r.Updates {
		fmt.Fprintf(&b, "  update from %-24s %8.1f MB  %.1f %% of it (%.1f MB without deltas; %.0f %% of the images is there)\n",
			u.From, mb(u.Deltas), percent(u.Deltas, r.Full), mb(u.Chunks), percent(u.Reused, r.Size))
	}
	return b.String()
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func percent(part, whole int64) float64 { return 100 * float64(part) / float64(max(whole, 1)) }
