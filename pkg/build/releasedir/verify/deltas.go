package verify

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// deltaLists returns the lists of deltas that belong to an index.
func (d *directory) deltaLists(index string) (lists []string) {
	for _, name := range slices.Sorted(maps.Keys(d.targets)) {
		if version, ok := fromVersion(index, name); ok && name == chunk.DeltasPath(index, version) {
			lists = append(lists, name)
		}
	}
	return lists
}

// fromVersion takes the version out of a path of chunk.DeltasPath.
func fromVersion(index, name string) (version string, ok bool) {
	before, after, _ := strings.Cut(chunk.DeltasPath(index, "*"), "*")
	version, ok = strings.CutPrefix(name, before)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(version, after)
}

// deltas checks a list. Where its base is in the directory, too, each delta is
// undone.
func (d *directory) deltas(ctx context.Context, target, image, name string, x chunk.Index, updates map[string]*Update) error {
	data, err := d.target(name)
	if err != nil {
		return err
	}
	list, err := chunk.DecodeDeltas(data, x)
	if err != nil {
		return err
	}
	old, err := d.baseImage(target, image, list.Base)
	if err != nil {
		return fmt.Errorf("base %s: %w", list.Base.Version, err)
	}
	u := updates[list.Base.Version]
	if u == nil {
		u = &Update{From: list.Base.Version, Checked: true}
		updates[list.Base.Version] = u
	}
	u.Checked = u.Checked && old != nil
	for _, e := range list.List {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c := x.Chunks[e.Chunk]
		info, err := os.Stat(filepath.Join(d.dir, filepath.FromSlash(c.ID.DeltaPath(list.Base))))
		if err != nil {
			return err
		}
		if info.Size() != int64(e.Size) {
			return fmt.Errorf("delta of chunk %s: %d bytes in the store; %d were signed", c.ID, info.Size(), e.Size)
		}
		u.Deltas++
		u.Size += int64(e.Size)
		if old == nil {
			continue
		}
		if e.Offset+int64(e.Length) > int64(len(old)) {
			return fmt.Errorf("delta of chunk %s: leans on what is behind the end of the base", c.ID)
		}
		if _, err := d.store.GetDelta(list.Base, c, old[e.Offset:e.Offset+int64(e.Length)]); err != nil {
			return err
		}
	}
	return nil
}

// baseImage puts an image of an earlier release together, nil when the
// directory has no such release.
func (d *directory) baseImage(target, image string, b chunk.Base) ([]byte, error) {
	if d.targets[release.ManifestPath(target, b.Version)] == nil {
		return nil, nil
	}
	m, err := d.manifest(target, b.Version)
	if err != nil {
		return nil, err
	}
	i := m.Image(image)
	if i.SHA256 != hex.EncodeToString(b.SHA256[:]) {
		return nil, nil // of the same version, but made again
	}
	data, err := d.target(i.Index)
	if err != nil {
		return nil, err
	}
	x, err := chunk.DecodeIndex(data)
	if err != nil {
		return nil, err
	}
	content, zeros := make([]byte, 0, i.Data), x.Zeros()
	for n, c := range x.Chunks {
		part := make([]byte, c.Size)
		if !zeros[n] {
			if part, err = d.store.Get(d.codec, c); err != nil {
				return nil, err
			}
		}
		content = append(content, part...)
	}
	return content, nil
}
