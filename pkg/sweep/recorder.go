package sweep

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/diskfs/go-diskfs/backend"
)

// Recorder is a disk in a file that logs what is written to it, in the format
// that ReadLog reads. It records what programs and file systems that work on a
// file do, without a machine around them. It must not be used concurrently.
//
// It can be handed to go-diskfs, too.
type Recorder struct {
	disk *os.File
	log  *os.File
	at   int64 // end of the log
	n    int
	pos  int64 // of Seek and Read
}

var (
	_ backend.WritableFile = (*Recorder)(nil)
	_ backend.Storage      = (*Recorder)(nil)
)

// NewRecorder opens the disk image disk for writing and starts the log log,
// replacing what is there.
func NewRecorder(disk, log string) (*Recorder, error) {
	d, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	l, err := os.OpenFile(log, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record: %w", errors.Join(err, d.Close()))
	}
	return &Recorder{disk: d, log: l, at: SectorSize}, nil
}

func (r *Recorder) add(e Entry, data []byte) error {
	b := append(appendEntry(nil, e), data...)
	if _, err := r.log.WriteAt(b, r.at); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	r.at += int64(len(b))
	r.n++
	return nil
}

// WriteAt writes to the disk. What a write leaves of its first and last sector
// is logged with it, as a kernel that writes whole sectors would.
func (r *Recorder) WriteAt(p []byte, at int64) (int, error) {
	n, err := r.disk.WriteAt(p, at)
	if err != nil || n == 0 {
		return n, err
	}
	first, end := at/SectorSize, (at+int64(n)+SectorSize-1)/SectorSize
	data := make([]byte, (end-first)*SectorSize)
	if _, err := r.disk.ReadAt(data, first*SectorSize); err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, r.add(Entry{Sector: first, Count: end - first}, data)
}

// Sync makes durable what was written before.
func (r *Recorder) Sync() error { return r.add(Entry{Flags: Flush}, nil) }

// Phase begins a phase.
func (r *Recorder) Phase(name string) error {
	if len(name) > SectorSize-entrySize {
		return fmt.Errorf("record: phase of %d characters", len(name))
	}
	return r.add(Entry{Flags: Mark, Text: name}, nil)
}

// Close ends the log and closes the disk.
func (r *Recorder) Close() error {
	_, err := r.log.WriteAt(appendHead(nil, r.n), 0)
	return errors.Join(err, r.log.Close(), r.disk.Close())
}

// ReadAt reads the disk.
func (r *Recorder) ReadAt(p []byte, at int64) (int, error) { return r.disk.ReadAt(p, at) }

// Read reads the disk from where Seek put the position.
func (r *Recorder) Read(p []byte) (int, error) {
	n, err := r.disk.ReadAt(p, r.pos)
	r.pos += int64(n)
	return n, err
}

// Seek sets the position of Read.
func (r *Recorder) Seek(offset int64, whence int) (int64, error) {
	size, err := r.disk.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	base := map[int]int64{io.SeekStart: 0, io.SeekCurrent: r.pos, io.SeekEnd: size}[whence]
	if base+offset < 0 {
		return 0, fmt.Errorf("seek to %d: %w", base+offset, fs.ErrInvalid)
	}
	r.pos = base + offset
	return r.pos, nil
}

// Stat describes the disk's file.
func (r *Recorder) Stat() (fs.FileInfo, error) { return r.disk.Stat() }

// Sys refuses: requests to the file itself would not be logged.
func (r *Recorder) Sys() (*os.File, error) { return nil, backend.ErrNotSuitable }

// Writable returns the recorder.
func (r *Recorder) Writable() (backend.WritableFile, error) { return r, nil }

// Path is empty, so that nobody opens the file beside the recorder.
func (r *Recorder) Path() string { return "" }
