package releasedir

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/chunk"
)

// prune removes chunks, deltas and target files that the metadata do not lead
// to: remains of replaced releases and of writes that were cut off.
func prune(dir string) error {
	d, err := openDirectory(dir)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, p := range d.paths() {
		named[path.Join("targets", signing.HashedPath(p, d.targets.Signed.Targets[p].Hashes["sha256"]))] = true
		if path.Ext(p) != ".caibx" {
			continue
		}
		if err := d.nameChunks(p, named); err != nil {
			return err
		}
	}
	for _, sub := range []string{"chunks", "targets"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(file string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(dir, file)
			if err == nil && !named[filepath.ToSlash(rel)] {
				err = os.Remove(file)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// nameChunks adds the files that an index and its lists of deltas lead to.
func (d directory) nameChunks(index string, named map[string]bool) error {
	data, err := d.target(index)
	if err != nil {
		return err
	}
	x, err := chunk.DecodeIndex(data)
	if err != nil {
		return err
	}
	for _, c := range x.Chunks {
		named[c.ID.Path()] = true
	}
	for _, p := range d.deltasOf(index) {
		if data, err = d.target(p); err != nil {
			return err
		}
		list, err := chunk.DecodeDeltas(data, x)
		if err != nil {
			return err
		}
		for _, e := range list.List {
			named[x.Chunks[e.Chunk].ID.DeltaPath(list.Base)] = true
		}
	}
	return nil
}

// deltasOf returns the paths of the lists of deltas that belong to an index.
func (d directory) deltasOf(index string) (lists []string) {
	for _, p := range d.paths() {
		version, ok := strings.CutPrefix(p, strings.TrimSuffix(index, ".caibx")+".from-")
		if version, isList := strings.CutSuffix(version, ".deltas"); ok && isList && p == chunk.DeltasPath(index, version) {
			lists = append(lists, p)
		}
	}
	return lists
}
