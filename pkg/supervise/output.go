package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	tailLines = 20
	// maxLine is where an overlong line is broken, in bytes.
	maxLine = 8 << 10
)

// output keeps what a service prints: timestamped lines in a file that is rotated at a size, and the last few in memory.
// Failures of the file are said once and otherwise ignored: a full tmpfs must not block a service on its pipe.
type output struct {
	path string
	max  int64
	logf func(format string, args ...any)

	mu   sync.Mutex // guards all below, and the tails of the streams
	file *os.File   // nil after Close or a failed rotation
	size int64
	shut bool // Close was called
	said bool
}

func openOutput(path string, max int64, logf func(string, ...any)) (*output, error) {
	o := &output{path: path, max: max, logf: logf}
	return o, o.open()
}

func (o *output) open() error {
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	o.file, o.size = f, st.Size()
	return nil
}

// Close closes the file; later lines only reach the tails.
func (o *output) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shut = true
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	o.file = nil
	return err
}

// line takes one line without its end. mu is held.
func (o *output) line(b []byte) {
	if err := o.write(b); err != nil && !o.said {
		o.said = true
		o.logf("supervise: %v (said once)", err)
	}
}

// stamp is RFC 3339 in UTC with milliseconds.
const stamp = "2006-01-02T15:04:05.000Z"

func (o *output) write(b []byte) error {
	if o.shut {
		return nil
	}
	if o.file == nil { // after a failed rotation, whose cause may be gone
		if err := o.open(); err != nil {
			return err
		}
	}
	rec := make([]byte, 0, len(stamp)+2+len(b))
	rec = time.Now().UTC().AppendFormat(rec, stamp)
	rec = append(rec, ' ')
	rec = append(rec, b...)
	rec = append(rec, '\n')
	if o.size > 0 && o.size+int64(len(rec)) > o.max {
		if err := o.rotate(); err != nil {
			return err
		}
	}
	n, err := o.file.Write(rec)
	o.size += int64(n)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// rotate makes the log path.1, in place of an older one, and begins anew.
func (o *output) rotate() error {
	err := o.file.Close()
	o.file = nil
	if err := errors.Join(err, os.Rename(o.path, o.path+".1")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate log: %w", err)
	}
	return o.open()
}

// stream returns the writer for one run of the service. Each has its own half line, which a crash leaves behind and
// the next write or Close does not glue to another's.
func (o *output) stream() *stream { return &stream{o: o} }

// stream cuts the output of one run of a service into lines. One goroutine writes.
type stream struct {
	o    *output
	part []byte
	tail []string // the newest lines; guarded by o.mu
}

var _ io.WriteCloser = (*stream)(nil)

func (s *stream) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			s.part = append(s.part, b...)
			b = nil
		} else {
			s.part = append(s.part, b[:i]...)
			b = b[i+1:]
		}
		for len(s.part) > maxLine {
			s.line(s.part[:maxLine])
			s.part = append(s.part[:0], s.part[maxLine:]...)
		}
		if i >= 0 {
			s.line(s.part)
			s.part = s.part[:0]
		}
	}
	return n, nil
}

// line takes one line without its end.
func (s *stream) line(b []byte) {
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	if len(s.tail) == tailLines {
		s.tail = append(s.tail[:0], s.tail[1:]...)
	}
	s.tail = append(s.tail, string(b))
	s.o.line(b)
}

// last returns at most n of the run's newest lines, without timestamps. A nil stream has none.
func (s *stream) last(n int) []string {
	if s == nil {
		return nil
	}
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	return append([]string{}, s.tail[max(0, len(s.tail)-n):]...)
}

// consoleWidth is how much of a line of output goes to the console, in bytes: a serial one takes a millisecond per ten.
const consoleWidth = 400

// consoleLine makes a line of a service's output fit for the console: short, and without what moves its cursor.
func consoleLine(line string) string {
	if len(line) > consoleWidth {
		line = strings.ToValidUTF8(line[:consoleWidth], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, line)
}

// Close writes an unfinished last line. It is called when the pipe has ended.
func (s *stream) Close() error {
	if len(s.part) > 0 {
		s.line(s.part)
		s.part = nil
	}
	return nil
}
