package chunk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Store is the part of a release directory that holds chunks. It is safe for
// concurrent use, by several processes too: files appear whole.
type Store struct{ dir string }

// NewStore returns the store in the release directory dir, which must exist.
func NewStore(dir string) *Store { return &Store{dir} }

// Put stores data under id and returns what it weighs there. A chunk that is
// there already is left alone.
func (s *Store) Put(c *Codec, id ID, data []byte) (size int, err error) {
	if err := (Ref{id, len(data)}).check(data); err != nil {
		return 0, fmt.Errorf("store chunk: %w", err)
	}
	file := s.path(id.Path())
	if info, err := os.Stat(file); err == nil {
		return int(info.Size()), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("store chunk: %w", err)
	}
	stored, err := c.Compress(data)
	if err != nil {
		return 0, err
	}
	return len(stored), s.write(file, stored)
}

// PutDelta stores a delta of the chunk id against b.
func (s *Store) PutDelta(b Base, id ID, delta []byte) error {
	return s.write(s.path(id.DeltaPath(b)), delta)
}

// Get returns a chunk, valid until c's next use.
func (s *Store) Get(c *Codec, want Ref) ([]byte, error) {
	stored, err := s.read(want.ID.Path())
	if err != nil {
		return nil, err
	}
	return c.Decompress(stored, want)
}

// GetDelta returns a chunk out of its delta against b and the dictionary.
func (s *Store) GetDelta(b Base, want Ref, dictionary []byte) ([]byte, error) {
	delta, err := s.read(want.ID.DeltaPath(b))
	if err != nil {
		return nil, err
	}
	return DecodeDelta(delta, dictionary, want)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

func (s *Store) write(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("store chunk: %w", err)
	}
	return atomicfile.Write(file, data, 0o644)
}

func (s *Store) read(name string) ([]byte, error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return nil, fmt.Errorf("read chunk: %w", err)
	}
	return data, nil
}
