package member

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// metadataFormat is the only format that dqlite writes (UV__DISK_FORMAT).
	metadataFormat = 1
	// metadataSize is that of a metadata file: format, version, term and vote
	// as little-endian 64-bit numbers (uv_metadata.c of dqlite 1.18.6).
	metadataSize = 4 * 8
)

// metadataFiles are written in turn.
var metadataFiles = [...]string{"metadata1", "metadata2"}

// metadata is what a member must not forget: raft stores it before it sends
// a vote or asks for one.
type metadata struct {
	version, term, vote uint64
}

// ReadTerm returns the raft term that the member with data directory dir has
// stored, 0 if none. The member may run.
//
// dqlite writes metadata1 and metadata2 alternately, each in place and under a higher
// version; terms never fall. So the highest term of the two is that of the
// highest version, except while the newer file is being written: then the
// older one holds what was stored before, and its term is no lower than a
// mixture of old and new bytes could pretend by version.
func ReadTerm(dir string) (uint64, error) {
	var term uint64
	for _, name := range metadataFiles {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("raft term: %w", err)
		}
		if m, ok := parseMetadata(data); ok {
			term = max(term, m.term)
		}
	}
	return term, nil
}

// beginTerm stores a new term, in which nobody was voted for, as dqlite stores
// it. The member must not run. A member that has stored nothing yet needs none.
func beginTerm(dir string) error {
	var newest metadata
	for _, name := range metadataFiles {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("begin a raft term: %w", err)
		}
		if m, ok := parseMetadata(data); ok && m.version > newest.version {
			newest = m
		}
	}
	if newest.version == 0 {
		return nil
	}
	next := metadata{version: newest.version + 1, term: newest.term + 1}
	name := metadataFiles[1] // Even versions are in metadata2 (uvMetadataFileIndex).
	if next.version%2 == 1 {
		name = metadataFiles[0]
	}
	if err := atomicfile.Write(filepath.Join(dir, name), next.encode(), 0o600); err != nil {
		return fmt.Errorf("begin a raft term: %w", err)
	}
	return nil
}

func (m metadata) encode() []byte {
	data := make([]byte, 0, metadataSize)
	for _, n := range []uint64{metadataFormat, m.version, m.term, m.vote} {
		data = binary.LittleEndian.AppendUint64(data, n)
	}
	return data
}

// parseMetadata reports false for a file that is torn or not dqlite's.
func parseMetadata(data []byte) (metadata, bool) {
	if len(data) != metadataSize || binary.LittleEndian.Uint64(data) != metadataFormat {
		return metadata{}, false
	}
	m := metadata{
		version: binary.LittleEndian.Uint64(data[8:]),
		term:    binary.LittleEndian.Uint64(data[16:]),
		vote:    binary.LittleEndian.Uint64(data[24:]),
	}
	return m, m.version != 0
}
