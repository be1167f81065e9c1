package sweep

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// Recording is a disk and all that was written to it, in the order in which
// the requests were completed.
type Recording struct {
	Base    io.ReaderAt // the disk before the first entry
	Size    int64       // of the disk in bytes
	Log     io.ReaderAt // where the data of Entries are
	Entries []Entry
	// Phases name parts of the recording, in order. What comes before the
	// first belongs to a phase without name.
	Phases []Phase
}

// Phase is a part of a recording. It lasts until the next one.
type Phase struct {
	Name string
	From int // index of its first entry
	// Boots lists the versions that a machine may boot when its power is cut
	// in this phase; empty means any that is known. A phase that begins
	// after the durable end of an act can be strict; one that contains the
	// act itself cannot.
	Boots []string
}

// Moment is a point in time of a recording that was made by QEMU, where
// nothing can be written into the log from outside: how long the log was then.
// A log only grows, so its length is a clock.
type Moment struct {
	Name  string
	Bytes int64 // length of the log file
	Boots []string
}

// PhasesAt returns the phases that begin at moments, which are in order.
func PhasesAt(entries []Entry, moments []Moment) ([]Phase, error) {
	var phases []Phase
	for i, m := range moments {
		if i > 0 && m.Bytes < moments[i-1].Bytes {
			return nil, fmt.Errorf("phase %s: it begins before phase %s", m.Name, moments[i-1].Name)
		}
		from := sort.Search(len(entries), func(j int) bool { return entries[j].End > m.Bytes })
		phases = append(phases, Phase{Name: m.Name, From: from, Boots: m.Boots})
	}
	return phases, nil
}

// PhasesOfMarks returns the phases that the marks among entries begin.
func PhasesOfMarks(entries []Entry) []Phase {
	var phases []Phase
	for i, e := range entries {
		if e.Flags&Mark != 0 {
			phases = append(phases, Phase{Name: e.Text, From: i})
		}
	}
	return phases
}

// phase returns the index of the phase that the entry belongs to, -1 for none.
func (r Recording) phase(entry int) int {
	return sort.Search(len(r.Phases), func(i int) bool { return r.Phases[i].From > entry }) - 1
}

// check reports what is wrong with the recording itself.
func (r Recording) check() error {
	if r.Base == nil || r.Log == nil || r.Size <= 0 || r.Size%SectorSize != 0 {
		return fmt.Errorf("recording: a disk of %d bytes, or none, or no log", r.Size)
	}
	if !slices.IsSortedFunc(r.Phases, func(a, b Phase) int { return a.From - b.From }) {
		return errors.New("recording: its phases are not in order")
	}
	for i, e := range r.Entries {
		if e.writes() && (e.Sector < 0 || e.Count > r.Size/SectorSize-e.Sector) {
			return fmt.Errorf("recording: entry %d: %d sectors from %d do not fit on the disk", i, e.Count, e.Sector)
		}
	}
	return nil
}

// Open opens the recording of a disk whose image was base before, with the log
// that QEMU's blklogwrites or Recorder wrote since. Neither file may be changed
// while it is open. Its phases are those of the log's marks.
func Open(base, log string) (_ *Recording, closeFiles func() error, err error) {
	image, err := mapFile(base)
	if err != nil {
		return nil, nil, fmt.Errorf("open recording: %w", err)
	}
	writes, err := mapFile(log)
	if err != nil {
		return nil, nil, fmt.Errorf("open recording: %w", errors.Join(err, image.Close()))
	}
	closeFiles = func() error { return errors.Join(image.Close(), writes.Close()) }
	entries, err := ReadLog(writes, int64(len(writes)), int64(len(image)))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open recording %s: %w", log, err), closeFiles())
	}
	r := &Recording{Base: image, Size: int64(len(image)), Log: writes, Entries: entries, Phases: PhasesOfMarks(entries)}
	return r, closeFiles, nil
}

// mapped is a file in memory, page by page as it is read: a state costs many
// small reads, and a system call each would be most of its price.
type mapped []byte

func mapFile(path string) (_ mapped, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return data, nil
}

func (m mapped) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at > int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close ends the mapping; nothing may be read afterwards.
func (m mapped) Close() error {
	if len(m) == 0 {
		return nil
	}
	return unix.Munmap(m)
}
