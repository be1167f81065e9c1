package damage

import (
	"encoding/binary"
	"fmt"
)

// segment is a segment's file and what of it dqlite would load.
type segment struct {
	name string
	// first and last are the indexes in a closed segment's name.
	first, last uint64
	// counter is the number in an open segment's name.
	counter uint64
	// entries, runs, firstType and decreasing tell of the valid batches.
	entries    uint64
	runs       []run
	firstType  byte
	decreasing bool
	// size is that of the file; end the offset behind the last valid batch.
	size, end int
	// zero: an open segment that was prepared and not yet written. dqlite
	// removes it.
	zero bool
	// torn: an open segment whose valid batches are followed by something
	// else than zeros.
	torn bool
	// findings are emitted when it is known whether the segment is needed.
	findings []Finding
}

func (s *segment) add(b batch) {
	if s.entries == 0 {
		s.firstType = b.firstType
	}
	s.decreasing = s.decreasing || b.decreasing || b.runs[0].term < s.lastTerm()
	s.entries += uint64(b.entries)
	s.end = b.end
	for _, r := range b.runs {
		if n := len(s.runs); n > 0 && s.runs[n-1].term == r.term {
			s.runs[n-1].entries += r.entries
		} else {
			s.runs = append(s.runs, r)
		}
	}
}

func (s *segment) lastTerm() uint64 {
	if len(s.runs) == 0 {
		return 0
	}
	return s.runs[len(s.runs)-1].term
}

// batches reads valid batches up to the end of buf or the first fault.
func (s *segment) batches(buf []byte) *fault {
	for {
		b, f := readBatch(buf, s.end)
		if f != nil {
			return f
		}
		s.add(b)
		if s.end == len(buf) {
			return nil
		}
	}
}

// readClosed reads the content of a closed segment as uvSegmentLoadClosed does:
// it must be whole.
func (s *segment) readClosed(buf []byte) []Finding {
	s.size, s.end = len(buf), formatSize
	damaged := func(offset int, text string) []Finding {
		return []Finding{{Severity: Damaged, Kind: Segment, File: s.name, Offset: int64(offset), Text: text}}
	}
	if len(buf) < formatSize {
		return damaged(0, fmt.Sprintf("a closed segment of %d bytes; its entries %d to %d are lost", len(buf), s.first, s.last))
	}
	if format := binary.LittleEndian.Uint64(buf); format != diskFormat {
		return damaged(0, fmt.Sprintf("the format is %d instead of %d", format, diskFormat))
	}
	if f := s.batches(buf); f != nil {
		return damaged(f.offset, fmt.Sprintf("%s, behind entry %d; entries up to %d are lost", f.text, s.first+s.entries-1, s.last))
	}
	if want := s.last - s.first + 1; s.entries != want {
		return damaged(-1, fmt.Sprintf("%d entries instead of %d", s.entries, want))
	}
	return nil
}

// readOpen reads the content of an open segment as uvSegmentLoadOpen does and
// then asks what dqlite does not: whether what it would drop as an unfinished
// write had been stored before.
func (s *segment) readOpen(buf []byte) []Finding {
	s.size, s.end = len(buf), formatSize
	if len(buf) == 0 {
		s.zero = true
		return nil
	}
	refused := func(offset int, text string) []Finding {
		return []Finding{{Severity: Damaged, Kind: Segment, File: s.name, Offset: int64(offset), Text: text}}
	}
	if len(buf) < formatSize {
		return refused(0, fmt.Sprintf("an open segment of %d bytes", len(buf)))
	}
	switch format := binary.LittleEndian.Uint64(buf); {
	case format == 0 && zeros(buf):
		s.zero = true
		return nil
	case format == 0 && zeros(buf[:min(sector, len(buf))]) && unfinished(buf, formatSize, findBatches(buf, formatSize)):
		s.zero = true
		return []Finding{{
			Severity: Repairable, Kind: TornTail, File: s.name, Offset: 0,
			Text:   "the first write of the segment did not finish: its begin is missing; it holds nothing that was acknowledged, and dqlite does not start with it",
			repair: removeFile,
		}}
	case format != diskFormat:
		return refused(0, fmt.Sprintf("the format is %d instead of %d", format, diskFormat))
	}
	f := s.batches(buf)
	if f == nil {
		return nil // Cut to size already, before it was given its name.
	}
	tail := zeros(buf[f.offset:])
	switch {
	case tail && f.cut:
		if s.entries == 0 {
			s.zero = true // dqlite removes it.
		}
		return nil
	case tail && s.size >= segmentSize && s.entries > 0:
		return []Finding{{
			Severity: Repairable, Kind: TornTail, File: s.name, Offset: int64(f.offset),
			Text:   "the segment is full but for fewer bytes than dqlite can read; it does not start with them",
			repair: cutFile,
		}}
	case !f.cut:
		return refused(f.offset, f.text)
	}
	s.torn = true
	return s.judge(buf, f)
}

// judge says whether the batch that dqlite would take for the end of the log
// is an unfinished write or had been stored.
func (s *segment) judge(buf []byte, f *fault) []Finding {
	lost := func(why string) []Finding {
		return []Finding{{
			Severity: Damaged, Kind: Lost, File: s.name, Offset: int64(f.offset), Silent: true,
			Text: f.text + ", and " + why + ": dqlite would take it for the end of the log and forget stored entries",
		}}
	}
	if f.flipped(buf) {
		return lost("one flipped bit explains it")
	}
	until := f.headerEnd
	if f.end != 0 {
		until = f.end
	}
	if !unwritten(buf, f.offset, until) {
		return lost("no part of it was left unwritten")
	}
	// What is behind the header is found too when the data are bad.
	behind := findBatches(buf, max(f.offset+8, f.end))
	if !unfinished(buf, f.offset, behind) {
		return lost(fmt.Sprintf("later entries follow at byte %d", behind[len(behind)-1].offset))
	}
	return []Finding{{
		Severity: Harmless, Kind: TornTail, File: s.name, Offset: int64(f.offset),
		Text: "the last write did not finish; dqlite drops it",
	}}
}

// unwritten reports whether, in buf from offset from to offset to, there is a
// sector with nothing but zeros. Segments are zeros before they are written,
// a write appends, and a disk writes whole sectors: one that is missing of an
// unfinished write reads as zeros from where the write began.
func unwritten(buf []byte, from, to int) bool {
	to = min(to, len(buf))
	for at := from; at < to; {
		next := min(at/sector*sector+sector, len(buf))
		if zeros(buf[at:next]) {
			return true
		}
		at = next
	}
	return false
}

// unfinished reports whether the batches found behind an unreadable one at
// offset off can belong to the same write as it. dqlite writes one thing at a
// time, so if they came later, it had been stored, and acknowledged perhaps.
//
// A write may hold several batches, but a leader has one command in flight,
// the others are barriers. So more than one command means several writes.
// (A follower that lags may have several commands in one write; then this is
// wrong in the safe direction.)
func unfinished(buf []byte, off int, behind []batch) bool {
	commands := 0
	if len(behind) > 0 && behind[0].offset-off > barrierBatch {
		commands++ // The unreadable one may be a command.
	}
	for _, b := range behind {
		commands += b.commands
	}
	return len(behind) == 0 || commands <= 1
}

func zeros(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
