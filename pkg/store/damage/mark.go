package damage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// markFile lies beside dqlite's files, which it ignores.
const markFile = "mark.json"

// Mark is an entry that is known to have been stored. A log that ends before
// it has lost entries, though all that is left of it may be valid: a segment
// that went missing as a whole, or that was cut between two batches, is
// noticed by nothing else.
//
// Only closed segments and snapshots count, which are flushed; so the mark
// is behind the log by up to an open segment, which is at most the entries
// between two snapshots.
type Mark struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Checksum is that of "index term" as text: damage of the mark itself must not accuse the log.
	Checksum uint32 `json:"checksum"`
}

func (m Mark) sum() uint32 { return checksum(fmt.Appendf(nil, "%d %d", m.Index, m.Term)) }

// ReadMark returns the mark in a member's directory; the error wraps
// fs.ErrNotExist if there is none.
func ReadMark(dir string) (Mark, error) {
	data, err := os.ReadFile(filepath.Join(dir, markFile))
	if err != nil {
		return Mark{}, fmt.Errorf("mark: %w", err)
	}
	return parseMark(data)
}

func parseMark(data []byte) (Mark, error) {
	var m Mark
	if err := json.Unmarshal(data, &m); err != nil {
		return Mark{}, fmt.Errorf("mark: %w", err)
	}
	if m.Checksum != m.sum() {
		return Mark{}, errors.New("mark: the checksum does not match")
	}
	return m, nil
}

// UpdateMark writes the mark of a member's directory if the log has grown
// since. It may be called while the member runs: it reads names, and the
// newest closed segment. It writes one small file, about 12 KiB of the
// disk with its journal: after each snapshot, or every ten minutes (2 MB a
// day), and after the member was stopped.
func UpdateMark(dir string) error {
	m, err := stored(dir)
	if err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	if old, err := ReadMark(dir); err == nil && !m.after(old) {
		return nil
	}
	if m.Index == 0 {
		return nil
	}
	m.Checksum = m.sum()
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	if err := atomicfile.Write(filepath.Join(dir, markFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("mark %s: %w", dir, err)
	}
	return nil
}

// LastClosed is the last index of the closed segments in a member's directory, 0
// if there are none. It reads names alone; the member may run.
func LastClosed(dir string) (uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("segments of %s: %w", dir, err)
	}
	var last uint64
	for _, e := range entries {
		if _, end, ok := closedName(e.Name()); ok {
			last = max(last, end)
		}
	}
	return last, nil
}

// after reports whether a log that ends at m is newer than one that ends at o,
// in raft's order.
func (m Mark) after(o Mark) bool {
	return m.Term > o.Term || m.Term == o.Term && m.Index > o.Index
}

// stored is the newest entry in closed segments and snapshots.
func stored(dir string) (Mark, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Mark{}, err
	}
	var newest Mark
	last := segment{}
	for _, e := range entries {
		if first, end, ok := closedName(e.Name()); ok && end > last.last {
			last = segment{name: e.Name(), first: first, last: end}
		}
		// The data's file is the second of the two.
		if s, meta, ok := snapshotName(e.Name()); ok && !meta {
			if m := (Mark{Index: s.index, Term: s.term}); m.after(newest) {
				newest = m
			}
		}
	}
	if last.name == "" {
		return newest, nil
	}
	buf, err := os.ReadFile(filepath.Join(dir, last.name))
	if errors.Is(err, fs.ErrNotExist) {
		return newest, nil // Removed since; next time.
	}
	if err != nil {
		return Mark{}, err
	}
	if len(buf) < formatSize || binary.LittleEndian.Uint64(buf) != diskFormat || len(last.readClosed(buf)) > 0 {
		return Mark{}, fmt.Errorf("%w: %s", ErrDamaged, last.name)
	}
	if m := (Mark{Index: last.last, Term: last.lastTerm()}); m.after(newest) {
		newest = m
	}
	return newest, nil
}

// compareMark notices closed segments that are gone. dqlite would give entries
// of an open segment the index of missing ones, so the end of what it would
// load says nothing.
//
// A follower that takes back entries of an old leader gets others of a higher
// term; a power cut between the two looks like a loss here, which costs a copy of
// the data.
func (in *inspection) compareMark() {
	if !in.hasMark {
		return
	}
	data, err := in.read(markFile, 1<<12)
	var m Mark
	if err == nil {
		m, err = parseMark(data)
	}
	if err != nil {
		in.add(Finding{Severity: Harmless, Kind: Unneeded, File: markFile, Offset: -1, Text: fmt.Sprintf("not readable: %v", err)})
		return
	}
	r := &in.report
	there := r.Snapshot
	if n := len(in.closed); n > 0 {
		there = max(there, in.closed[n-1].last)
	}
	if there >= m.Index || r.LastTerm > m.Term || r.Damaged() {
		return
	}
	in.add(Finding{
		Severity: Damaged, Kind: BehindMark, File: ".", Offset: -1, Silent: true,
		Text: fmt.Sprintf("closed segments and snapshots end at entry %d, but entry %d of term %d had been stored in them: a part of the log is gone", there, m.Index, m.Term),
	})
}
