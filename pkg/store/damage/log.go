package damage

import (
	"fmt"
	"slices"
)

// log finds out what dqlite would load, as uvLoadSnapshotAndEntries does, and
// whether that is all that was stored.
func (in *inspection) log() {
	newest := in.newestSnapshot()
	in.readSegments()
	in.unfinishedTruncation()
	written := slices.ContainsFunc(in.open, (*segment).written)
	in.report.Empty = newest == nil && len(in.closed) == 0 && !written
	var loaded []*segment
	start := uint64(1)
	if newest != nil {
		in.report.Snapshot = newest.index
		in.report.LastIndex, in.report.LastTerm = newest.index, newest.term
		loaded, start = in.afterSnapshot(newest, written)
	} else {
		loaded = in.fromStart(written)
	}
	for _, s := range in.open {
		in.report.Findings = append(in.report.Findings, s.findings...)
	}
	in.openInOrder()
	in.count(loaded, start, newest)
}

// written reports whether the segment holds anything.
func (s *segment) written() bool { return !s.zero }

// unfinishedTruncation finds the closed segments that a follower leaves when
// a power cut meets it while it drops entries of an old leader: it writes the
// shortened segment first and then removes the long one. The long one alone is
// the state before.
func (in *inspection) unfinishedTruncation() {
	var kept []*segment
	for i, s := range in.closed {
		if i+1 < len(in.closed) {
			if long := in.closed[i+1]; long.first == s.first && len(long.findings) == 0 {
				in.add(Finding{
					Severity: Repairable, Kind: Unfinished, File: s.name, Offset: -1,
					Text:   "a copy of the begin of " + long.name + ", left by a truncation that did not finish",
					repair: removeFile,
				})
				continue
			}
		}
		kept = append(kept, s)
	}
	in.closed = kept
	for i := range max(len(kept)-1, 0) {
		if a, b := kept[i], kept[i+1]; b.first <= a.last {
			in.add(Finding{Severity: Damaged, Kind: Gap, File: b.name, Offset: -1, Text: "its entries are also in " + a.name})
		}
	}
}

// needed emits the findings of closed segments that dqlite reads, and says of
// the others that it does not.
func (in *inspection) needed(unneeded, needed []*segment) {
	for _, s := range unneeded {
		in.add(Finding{Severity: Harmless, Kind: Unneeded, File: s.name, Offset: -1, Text: "an old part of the log that the snapshot has replaced"})
	}
	for _, s := range needed {
		in.report.Findings = append(in.report.Findings, s.findings...)
	}
}

// afterSnapshot returns the segments that dqlite loads beside the snapshot,
// and the index of their first entry. written says whether any open segment
// holds entries.
func (in *inspection) afterSnapshot(snap *snapshot, written bool) ([]*segment, uint64) {
	if len(in.closed) == 0 {
		return in.open, snap.index + 1
	}
	last := in.closed[len(in.closed)-1]
	if last.last < snap.index {
		// Before a member takes a snapshot it closes the segments that hold
		// its entries, and a member that is sent a snapshot then removes them.
		in.add(Finding{
			Severity: Damaged, Kind: Gap, File: last.name, Offset: -1, Silent: true,
			Text: fmt.Sprintf("no closed segment follows it, though the snapshot is at entry %d: entries behind it are lost, or a snapshot was being received when the power failed", snap.index),
		})
		in.needed(in.closed, nil)
		return nil, snap.index + 1
	}
	i := len(in.closed) - 1
	for i > 0 && in.closed[i-1].last+1 == in.closed[i].first {
		i--
	}
	first := in.closed[i]
	if first.first > snap.index+1 {
		in.gap(first, snap.index+1)
	}
	in.needed(in.closed[:i], in.closed[i:])
	return slices.Concat(in.closed[i:], in.open), first.first
}

// fromStart returns the segments that dqlite loads without a snapshot: all.
func (in *inspection) fromStart(written bool) []*segment {
	in.needed(nil, in.closed)
	next := uint64(1)
	for _, s := range in.closed {
		if s.first > next {
			in.gap(s, next)
		}
		next = s.last + 1
	}
	if len(in.closed) == 0 && written {
		// The first entry of a log is the cluster's configuration.
		if s := in.open[slices.IndexFunc(in.open, (*segment).written)]; s.entries > 0 && s.firstType != entryChange {
			in.gap(s, 1)
		}
	}
	return slices.Concat(in.closed, in.open)
}

func (in *inspection) gap(s *segment, want uint64) {
	text := fmt.Sprintf("entries %d to %d are missing before it", want, s.first-1)
	if s.first == 0 {
		text = fmt.Sprintf("entries from %d on are missing before it", want)
	}
	in.add(Finding{Severity: Damaged, Kind: Gap, File: s.name, Offset: -1, Text: text})
}

// openInOrder checks what dqlite does not: it loads open segments one after
// the other and gives the entries the next index, whatever is missing between.
// The numbers of open segments are given in the order in which they are
// written, and a write begins when the one before has finished. A number may
// be left out: one that could not be prepared on a full disk.
func (in *inspection) openInOrder() {
	var before *segment
	for i, s := range in.open {
		// Two are kept ready behind the one that is written; a file system without a common journal may lose
		// the sizes of both until they are written to, though not their names.
		ready := i+2 >= len(in.open) && !in.open[len(in.open)-1].written()
		if s.zero && s.size < segmentSize && i+1 < len(in.open) && !ready && len(s.findings) == 0 {
			in.add(Finding{
				Severity: Damaged, Kind: Lost, File: s.name, Offset: int64(s.size), Silent: true,
				Text: "the segment is cut off, though " + in.open[i+1].name + " was prepared after it: what it held is lost",
			})
			continue
		}
		if !s.written() {
			continue
		}
		if i > 0 && before == nil {
			before = in.open[i-1]
		}
		if before == nil {
			before = s
			continue
		}
		lost := func(file *segment, offset int, text string) {
			in.add(Finding{
				Severity: Damaged, Kind: Lost, File: file.name, Offset: int64(offset), Silent: true,
				Text: text + ": dqlite would forget stored entries and give others the wrong index",
			})
		}
		switch {
		case before.torn:
			lost(before, before.end, "the segment has no valid end, though "+s.name+" was written after it")
		case !before.written():
			lost(before, 0, "the segment is empty, though "+s.name+" was written after it")
		}
		before = s
	}
}

// count numbers the entries that dqlite would load from index start on, and
// compares their terms.
func (in *inspection) count(loaded []*segment, start uint64, snap *snapshot) {
	var highest, termThere uint64
	next := start
	wrong := func(s *segment, text string) {
		in.add(Finding{
			Severity: Damaged, Kind: Gap, File: s.name, Offset: -1, Silent: true,
			Text: text + ": a part of the log is missing or in the wrong place",
		})
	}
	for _, s := range loaded {
		for _, r := range s.runs {
			if snap != nil && next <= snap.index && snap.index < next+r.entries {
				termThere = r.term
				if r.term != snap.term {
					wrong(s, fmt.Sprintf("entry %d is of term %d, but of term %d in the snapshot", snap.index, r.term, snap.term))
				}
			}
			next += r.entries
		}
		// A recovery by hand appends a configuration of term 1.
		recovery := s.first != 0 && s.first == s.last && s.firstType == entryChange && s.lastTerm() == 1
		if s.decreasing || (len(s.runs) > 0 && s.runs[0].term < highest && !recovery) {
			wrong(s, "the terms of its entries decrease")
		}
		highest = max(highest, s.lastTerm())
		if len(s.runs) > 0 && next > in.report.LastIndex {
			in.report.LastIndex, in.report.LastTerm = next-1, s.lastTerm()
		}
	}
	if snap != nil {
		highest = max(highest, snap.term)
		if termThere == 0 && len(loaded) > 0 && start <= snap.index && !in.report.Damaged() {
			in.add(Finding{Severity: Damaged, Kind: Gap, File: loaded[len(loaded)-1].name, Offset: -1, Text: fmt.Sprintf("the log ends at entry %d, before the snapshot at %d", next-1, snap.index)})
		}
	}
	if highest > in.report.Term && !in.report.Damaged() {
		in.add(Finding{
			Severity: Damaged, Kind: Metadata, File: newerMetadata(in.version), Offset: -1, Silent: true,
			Text: fmt.Sprintf("the term is %d, but entries are of term %d: it has gone back", in.report.Term, highest),
		})
	}
}

// newerMetadata is the file that holds a version.
func newerMetadata(version uint64) string { return metadataNames[1-version%2] }

// unfinishedBootstrap looks at a member that has a term and no log. A member
// that joins may be so. One that founds a cluster is so if a power cut comes
// between the two; pkg/store/member founds it anew then, as long as its file
// says that this was not finished. Without that file a log was there.
func (in *inspection) unfinishedBootstrap() {
	if in.version == 0 || in.id != bootstrapID {
		return
	}
	if in.bootstrapping {
		in.add(Finding{Severity: Harmless, Kind: Bootstrap, File: metadataNames[0], Offset: -1, Text: "the founding of the cluster did not finish; it begins anew"})
		return
	}
	in.add(Finding{Severity: Damaged, Kind: Gap, File: ".", Offset: -1, Silent: true, Text: "the member has founded a cluster, and there is neither log nor snapshot"})
}
