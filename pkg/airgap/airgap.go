// Package airgap imports image archives from directories into the container runtime, for machines without a registry.
//
// An archive is imported when it is new or changed, or when the runtime lost one of its images: imports wear out flash
// memory. One bad archive is reported by its name and costs no other.
package airgap

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// digestLimit is up to what size, in bytes, archives are compared by content. All files of a reproducible image have the
// same time, so those of the root file system need it; larger ones are an owner's and have a time.
const digestLimit = 8 << 20

// Store is the runtime's image store.
type Store interface {
	// Import adds the images of the archive r and returns their names. Those in pinned are never removed by the runtime.
	Import(ctx context.Context, r io.Reader, pinned []string) ([]string, error)
	// Has reports whether the image of that name is there.
	Has(ctx context.Context, name string) (bool, error)
}

// Importer imports the archives of directories.
type Importer struct {
	Images Store
	Dirs   []string // one that is missing counts as empty
	State  string   // file that remembers what was imported
	Pinned []string // names of images that the runtime must not remove
	Log    *slog.Logger
}

// record is what is remembered of an imported archive.
type record struct {
	Mark   string   `json:"mark"` // changes when the archive does
	Images []string `json:"images"`
}

// Run imports what needs it. The error names every archive that failed.
func (m Importer) Run(ctx context.Context) error {
	known := m.load()
	next := make(map[string]record)
	changed := false
	var errs []error
	for _, path := range m.archives() {
		r, did, err := m.one(ctx, path, known[path])
		if err != nil {
			errs = append(errs, fmt.Errorf("import %s: %w", path, err))
			continue
		}
		next[path] = r
		changed = changed || did
	}
	if changed || len(next) != len(known) {
		errs = append(errs, m.save(next))
	}
	return errors.Join(errs...)
}

// archives lists the files, those of earlier directories first.
func (m Importer) archives() []string {
	var all []string
	for _, dir := range m.Dirs {
		for _, pattern := range []string{"*.tar", "*.tar.gz", "*.tgz", "*.tar.zst"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern)) // sorted
			if err == nil {                                          // only a bad pattern is an error
				all = append(all, found...)
			}
		}
	}
	return all
}

func (m Importer) one(ctx context.Context, path string, known record) (_ record, did bool, err error) {
	begin := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return record{}, false, err
	}
	defer f.Close()
	mark, err := markOf(f)
	if err != nil {
		return record{}, false, err
	}
	if mark == known.Mark && m.present(ctx, known.Images) {
		return known, false, nil
	}
	names, err := m.Images.Import(ctx, f, m.Pinned)
	if err != nil {
		return record{}, false, err
	}
	if len(names) == 0 {
		return record{}, false, errors.New("no image in it")
	}
	m.Log.Info("images imported", "file", path, "images", names, "took", time.Since(begin).Round(time.Millisecond))
	return record{mark, names}, true, nil
}

func (m Importer) present(ctx context.Context, names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		ok, err := m.Images.Has(ctx, name)
		return err != nil || !ok
	})
}

// markOf tells one content of a file from another, and leaves f at its start.
func markOf(f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	if info.Size() > digestLimit {
		return fmt.Sprintf("%d bytes of %s", info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)), nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	_, err = f.Seek(0, io.SeekStart)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), err
}

// load returns what was imported; nothing when the file is missing or damaged, which costs a second import.
func (m Importer) load() map[string]record {
	data, err := os.ReadFile(m.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var known map[string]record
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err != nil {
		m.Log.Warn("imported images forgotten", "file", m.State, "error", err)
		return nil
	}
	return known
}

func (m Importer) save(next map[string]record) error {
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	return atomicfile.Write(m.State, data, 0o600)
}
