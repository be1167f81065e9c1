// Package kmsg writes to the kernel log, which is what the console shows and what survives in pstore after a crash.
//
// Reference: Documentation/ABI/testing/dev-kmsg. One write is one record of at most LineMax bytes.
package kmsg

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
)

// Path is the kernel log's device.
const Path = "/dev/kmsg"

// LineMax is the number of bytes of text that one record takes here; the kernel's limit is 1024 with its own prefix.
const LineMax = 900

// Level is a syslog severity; the console shows those below its log level, 7 unless the command line says "quiet".
type Level int

// The severities used here.
const (
	Emergency Level = 0
	Error     Level = 3
	Warning   Level = 4
	Notice    Level = 5
	Info      Level = 6
)

// Writer turns lines into records. It fits log.SetOutput.
type Writer struct {
	level  Level
	prefix string

	mu  sync.Mutex
	out io.Writer // guarded by mu, so that the records of one Write stay together
}

// NewWriter returns a Writer of records with the given level that start with prefix.
func NewWriter(out io.Writer, level Level, prefix string) *Writer {
	return &Writer{level: level, prefix: prefix, out: out}
}

// Open opens the kernel log for writing.
func Open() (*os.File, error) {
	f, err := os.OpenFile(Path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open kernel log: %w", err)
	}
	return f, nil
}

// Write writes every line of p as a record, long lines as several.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range bytes.SplitSeq(bytes.TrimRight(p, "\n"), []byte("\n")) {
		for first := true; first || len(line) > 0; first = false {
			n := min(len(line), LineMax)
			if _, err := fmt.Fprintf(w.out, "<%d>%s%s\n", w.level, w.prefix, line[:n]); err != nil {
				return 0, fmt.Errorf("write kernel log: %w", err)
			}
			line = line[n:]
		}
	}
	return len(p), nil
}

// Unlimit lifts the kernel's limit of ten records in five seconds for user space: a boot says more than that.
// procRoot is "/proc" on a node.
func Unlimit(procRoot string) error {
	path := procRoot + "/sys/kernel/printk_devkmsg"
	if err := os.WriteFile(path, []byte("on\n"), 0o644); err != nil {
		return fmt.Errorf("lift the kernel log's rate limit: %w", err)
	}
	return nil
}
