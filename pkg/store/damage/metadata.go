package damage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
)

// Term and vote lie in two files of 32 bytes that are written in turns: u64
// format, version, term, vote (src/raft/uv_metadata.c). They have no checksum,
// but only some pairs can arise: dqlite either raises the term and clears the
// vote, or sets the vote of the term that it has.
const metadataSize = 32

var metadataNames = [2]string{"metadata1", "metadata2"}

type metadata struct {
	version, term, vote uint64
	// missing and short: dqlite goes on without the file (and removes a
	// short one) as if it had never been written.
	missing, short bool
}

func (m metadata) absent() bool { return m.missing || m.short }

// parseMetadata reads the content of metadata file n (0 or 1). The error is
// why dqlite refuses it.
func parseMetadata(n int, data []byte) (metadata, error) {
	switch {
	case len(data) < metadataSize:
		return metadata{short: true}, nil
	case len(data) > metadataSize:
		return metadata{}, fmt.Errorf("%d bytes instead of %d", len(data), metadataSize)
	}
	m := metadata{
		version: binary.LittleEndian.Uint64(data[8:]),
		term:    binary.LittleEndian.Uint64(data[16:]),
		vote:    binary.LittleEndian.Uint64(data[24:]),
	}
	if format := binary.LittleEndian.Uint64(data); format != diskFormat {
		return metadata{}, fmt.Errorf("the format is %d instead of %d", format, diskFormat)
	}
	if m.version == 0 {
		return metadata{}, errors.New("the version is 0")
	}
	if want := uint64(1 - n); m.version%2 != want {
		return metadata{}, fmt.Errorf("version %d does not belong in this file", m.version)
	}
	return m, nil
}

// metadata reads both files. hasData says whether the directory holds parts
// of a log.
func (in *inspection) metadata(hasData bool) {
	var m [2]metadata
	for n, name := range metadataNames {
		data, err := in.read(name, metadataSize+1)
		if errors.Is(err, fs.ErrNotExist) {
			m[n].missing = true
			continue
		}
		if err != nil {
			in.unreadable(name, err)
			return
		}
		if m[n], err = parseMetadata(n, data); err != nil {
			in.add(Finding{Severity: Damaged, Kind: Metadata, File: name, Offset: -1, Text: err.Error() + ": the term and the vote of this member are in doubt"})
			return
		}
	}
	older, newer := m[0], m[1]
	if older.version > newer.version {
		older, newer = newer, older
	}
	in.report.Term, in.report.Vote = newer.term, newer.vote
	in.version = newer.version
	if file, text := checkMetadata(m, hasData); text != "" {
		in.add(Finding{
			Severity: Damaged, Kind: Metadata, File: file, Offset: -1, Silent: true,
			Text: text + ": dqlite would start with a term and vote that it may have left behind, and could vote twice in a term",
		})
		return
	}
	for n := range m {
		if m[n].short {
			in.add(Finding{Severity: Harmless, Kind: TornTail, File: metadataNames[n], Offset: -1, Text: "its first write did not finish; dqlite removes it"})
		}
	}
}

// checkMetadata says which file is wrong, and how; "" if nothing is.
func checkMetadata(m [2]metadata, hasData bool) (file, text string) {
	switch {
	case m[0].absent() && m[1].absent() && hasData:
		return metadataNames[0], "both metadata files are missing or short beside a log"
	case m[0].absent() && m[1].absent():
		return "", ""
	case m[0].absent():
		return metadataNames[0], "missing or short, though metadata2 is written after it"
	case m[1].absent() && m[0].version == 1:
		return "", ""
	case m[1].absent():
		return metadataNames[1], fmt.Sprintf("missing or short, though metadata1 is version %d", m[0].version)
	}
	older, newer, file := m[0], m[1], metadataNames[1]
	if older.version > newer.version {
		older, newer, file = newer, older, metadataNames[0]
	}
	switch {
	case newer.version-older.version != 1:
		return file, fmt.Sprintf("versions %d and %d do not follow each other", older.version, newer.version)
	case newer.term < older.term:
		return file, fmt.Sprintf("term %d of version %d follows term %d", newer.term, newer.version, older.term)
	case newer.term == older.term && newer.vote == 0:
		return file, fmt.Sprintf("version %d takes back the vote of term %d", newer.version, newer.term)
	case newer.term == older.term && older.vote != 0 && older.vote != newer.vote:
		return file, fmt.Sprintf("version %d changes the vote of term %d from %016x to %016x", newer.version, newer.term, older.vote, newer.vote)
	case newer.term > older.term && newer.vote != 0:
		return file, fmt.Sprintf("version %d raises the term to %d and votes at once", newer.version, newer.term)
	}
	return "", ""
}
