// Package logfile reads the bounded logs that the supervisor writes: the newest lines of a process, and what follows.
package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Dir is where init keeps the logs of its processes.
const Dir = "/run/cairn/log"

// ErrUnknown says that a process has no log.
var ErrUnknown = errors.New("no log of this process")

// followInterval is how often a followed log is looked at. It lies in memory, so a look costs microseconds.
const followInterval = 250 * time.Millisecond

// Options say what Copy copies.
type Options struct {
	Lines  int // the newest so many; negative: all there are
	Follow bool
}

// Copy writes the log of process in dir to w, and with Follow what is added, until ctx ends. Rotation is followed. An
// end of ctx is no error.
func Copy(ctx context.Context, w io.Writer, dir, process string, opt Options) error {
	if process == "" || process != filepath.Base(process) || process[0] == '.' {
		return fmt.Errorf("%w: %q", ErrUnknown, process)
	}
	path := filepath.Join(dir, process+".log")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %q", ErrUnknown, process)
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	t := &tail{path: path, f: f, w: w}
	defer func() { t.f.Close() }()
	if err := t.begin(opt.Lines); err != nil || !opt.Follow {
		return err
	}
	return t.follow(ctx)
}

type tail struct {
	path string
	f    *os.File
	w    io.Writer
}

// begin writes the newest lines. Both files together are small (1 MiB), so they are read whole.
func (t *tail) begin(lines int) error {
	data, err := io.ReadAll(t.f)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if lines < 0 || bytes.Count(data, []byte("\n")) < lines {
		old, err := os.ReadFile(t.path + ".1")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read older log: %w", err)
		}
		data = append(old, data...)
	}
	if lines >= 0 {
		data = lastLines(data, lines)
	}
	if _, err := t.w.Write(data); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// lastLines returns the end of data that holds n lines.
func lastLines(data []byte, n int) []byte {
	if n <= 0 {
		return nil
	}
	for i := len(data) - 2; i >= 0; i-- { // the last byte ends the last line
		if data[i] != '\n' {
			continue
		}
		if n--; n == 0 {
			return data[i+1:]
		}
	}
	return data
}

func (t *tail) follow(ctx context.Context) error {
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := t.more(); err != nil {
			return err
		}
	}
}

// more copies what was added. When the log was rotated, the rest of the old file comes first.
func (t *tail) more() error {
	rotated, err := t.rotated()
	if err != nil {
		return err
	}
	for {
		if _, err := io.Copy(t.w, t.f); err != nil {
			return fmt.Errorf("copy log: %w", err)
		}
		if !rotated {
			return nil
		}
		next, err := os.Open(t.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // between rename and create: the next look finds it
		}
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		t.f.Close()
		t.f, rotated = next, false
	}
}

func (t *tail) rotated() (bool, error) {
	mine, err := t.f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	now, err := os.Stat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	return !os.SameFile(mine, now), nil
}
