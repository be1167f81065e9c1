// Package verify checks release directories: all signatures, and that each
// chunk is there and is what the signed indexes say.
package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// Report says what a directory holds. Sizes are in bytes.
type Report struct {
	Root     int64     `json:"root"`    // version of root's metadata
	Expires  time.Time `json:"expires"` // the first end among the metadata
	Channels []Channel `json:"channels"`
	Releases []Release `json:"releases"`
}

// Channel is a channel of a target.
type Channel struct {
	Target string `json:"target"`
	Name   string `json:"name"`
	release.Channel
}

// Release is a version of a target.
type Release struct {
	Target     string `json:"target"`
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	Size       int64  `json:"size"`   // of the images
	Full       int64  `json:"full"`   // download of all chunks
	Chunks     int    `json:"chunks"` // different ones
	// Updates are those for which there are deltas.
	Updates []Update `json:"updates,omitempty"`
}

// Update is the way from an earlier version.
type Update struct {
	From   string `json:"from"`
	Deltas int    `json:"deltas"`
	Size   int64  `json:"size"` // of all deltas
	// Checked says that the base is in the directory, so that each delta was
	// undone; of others only the lengths are known.
	Checked bool `json:"checked"`
}

// Directory checks the release directory dir against the trusted root metadata
// anchor, with expiry judged at the time now. Its error says what is wrong
// first; the Report holds what was found until then.
func Directory(ctx context.Context, dir string, anchor []byte, now time.Time) (*Report, error) {
	d := &directory{dir: dir, store: chunk.NewStore(dir)}
	var err error
	if d.codec, err = chunk.NewCodec(); err != nil {
		return nil, err
	}
	r := &Report{}
	err = d.check(ctx, anchor, now, r)
	return r, errors.Join(err, d.codec.Close())
}

type directory struct {
	dir     string
	store   *chunk.Store
	codec   *chunk.Codec
	targets map[string]*metadata.TargetFiles
}

func (d *directory) check(ctx context.Context, anchor []byte, now time.Time, r *Report) error {
	if err := d.signatures(anchor, now, r); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(d.targets)) {
		if _, err := d.target(name); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.targets)) {
		target, file := path.Split(name)
		target = path.Clean(target)
		switch {
		case file == "release.json":
			one, err := d.release(ctx, path.Dir(target), path.Base(target))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r.Releases = append(r.Releases, one)
		case path.Ext(file) == ".json":
			c, err := d.channel(target, strings.TrimSuffix(file, ".json"))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r.Channels = append(r.Channels, c)
		}
	}
	slices.SortFunc(r.Releases, func(a, b Release) int { return release.Compare(a.Version, b.Version) })
	return nil
}

// signatures follows the specification's client workflow, section 5.
func (d *directory) signatures(anchor []byte, now time.Time, r *Report) error {
	trusted, err := trustedmetadata.New(anchor)
	if err != nil {
		return fmt.Errorf("trust anchor: %w", err)
	}
	trusted.RefTime = now.UTC()
	for {
		data, err := d.read(fmt.Sprintf("%d.root.json", trusted.Root.Signed.Version+1))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := trusted.UpdateRoot(data); err != nil {
			return fmt.Errorf("root %d: %w", trusted.Root.Signed.Version+1, err)
		}
	}
	data, err := d.read("timestamp.json")
	if err != nil {
		return err
	}
	if _, err := trusted.UpdateTimestamp(data); err != nil {
		return fmt.Errorf("timestamp: %w", err)
	}
	if data, err = d.read(fmt.Sprintf("%d.snapshot.json", trusted.Timestamp.Signed.Meta["snapshot.json"].Version)); err != nil {
		return err
	}
	if _, err := trusted.UpdateSnapshot(data, false); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if data, err = d.read(fmt.Sprintf("%d.targets.json", trusted.Snapshot.Signed.Meta["targets.json"].Version)); err != nil {
		return err
	}
	targets, err := trusted.UpdateTargets(data)
	if err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	d.targets = targets.Signed.Targets
	r.Root = trusted.Root.Signed.Version
	r.Expires = slices.MinFunc([]time.Time{
		trusted.Root.Signed.Expires, trusted.Timestamp.Signed.Expires, trusted.Snapshot.Signed.Expires, targets.Signed.Expires,
	}, time.Time.Compare)
	return nil
}

func (d *directory) read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(d.dir, "metadata", name))
}

// target returns a target file that is as long and has the digest that was
// signed.
func (d *directory) target(name string) ([]byte, error) {
	t := d.targets[name]
	if t == nil {
		return nil, fmt.Errorf("target %s: not among the signed files", name)
	}
	if err := release.CheckPath(name); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	hashed := path.Join(path.Dir(name), fmt.Sprintf("%x.%s", []byte(t.Hashes["sha256"]), path.Base(name)))
	data, err := os.ReadFile(filepath.Join(d.dir, "targets", filepath.FromSlash(hashed)))
	if err == nil {
		err = t.VerifyLengthHashes(data)
	}
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	return data, nil
}

func (d *directory) channel(target, name string) (Channel, error) {
	data, err := d.target(release.ChannelPath(target, name))
	if err != nil {
		return Channel{}, err
	}
	c, err := release.DecodeChannel(data)
	if err != nil {
		return Channel{}, err
	}
	if d.targets[release.ManifestPath(target, c.Version)] == nil {
		return Channel{}, fmt.Errorf("names version %s, which is not here", c.Version)
	}
	return Channel{target, name, c}, nil
}

func (d *directory) manifest(target, version string) (release.Manifest, error) {
	data, err := d.target(release.ManifestPath(target, version))
	if err != nil {
		return release.Manifest{}, err
	}
	m, err := release.DecodeManifest(data)
	if err == nil && (m.Target != target || m.Version != version) {
		err = fmt.Errorf("is of version %s for %s", m.Version, m.Target)
	}
	return m, err
}

func (d *directory) release(ctx context.Context, target, version string) (Release, error) {
	m, err := d.manifest(target, version)
	if err != nil {
		return Release{}, err
	}
	r := Release{Target: target, Version: version, Kubernetes: m.Kubernetes}
	updates := map[string]*Update{}
	seen := map[chunk.ID]bool{}
	for _, i := range m.Images {
		r.Size += i.Size
		x, err := d.image(ctx, i, seen, &r)
		if err != nil {
			return r, fmt.Errorf("image %s: %w", i.Name, err)
		}
		for _, list := range d.deltaLists(i.Index) {
			if err := d.deltas(ctx, target, i.Name, list, x, updates); err != nil {
				return r, fmt.Errorf("%s: %w", list, err)
			}
		}
	}
	for _, from := range slices.SortedFunc(maps.Keys(updates), release.Compare) {
		r.Updates = append(r.Updates, *updates[from])
	}
	return r, nil
}

// image checks all chunks of an image, and the digest of what they make.
func (d *directory) image(ctx context.Context, i release.Image, seen map[chunk.ID]bool, r *Release) (chunk.Index, error) {
	data, err := d.target(i.Index)
	if err != nil {
		return chunk.Index{}, err
	}
	x, err := chunk.DecodeIndex(data)
	if err != nil {
		return x, err
	}
	if n := x.Length(); n != i.Data {
		return x, fmt.Errorf("its index covers %d bytes; want %d", n, i.Data)
	}
	if data, err = d.target(chunk.SizesPath(i.Index)); err != nil {
		return x, err
	}
	sizes, err := chunk.DecodeSizes(data, x)
	if err != nil {
		return x, err
	}
	h, zeros := sha256.New(), x.Zeros()
	for n, c := range x.Chunks {
		if ctx.Err() != nil {
			return x, ctx.Err()
		}
		if err := d.chunk(c, zeros[n], sizes[n], h); err != nil {
			return x, err
		}
		if !seen[c.ID] && !zeros[n] {
			seen[c.ID] = true
			r.Full += int64(sizes[n])
			r.Chunks++
		}
	}
	// Of the root, the machine computes the end; its root hash vouches for it.
	if got := hex.EncodeToString(h.Sum(nil)); i.Data == i.Size && got != i.SHA256 {
		return x, fmt.Errorf("its chunks make an image with the digest %s; want %s", got, i.SHA256)
	}
	return x, nil
}

func (d *directory) chunk(c chunk.Ref, zero bool, size int, h hash.Hash) error {
	if zero {
		h.Write(make([]byte, c.Size))
		return nil
	}
	data, err := d.store.Get(d.codec, c)
	if err != nil {
		return err
	}
	h.Write(data)
	info, err := os.Stat(filepath.Join(d.dir, filepath.FromSlash(c.ID.Path())))
	if err == nil && info.Size() != int64(size) {
		err = fmt.Errorf("chunk %s: %d bytes in the store; %d were signed", c.ID, info.Size(), size)
	}
	return err
}
