package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeProc is a /proc whose processes end by the signals they obey.
type fakeProc struct {
	t    *testing.T
	dir  string
	obey map[int]unix.Signal
	log  []string
}

func (f *fakeProc) add(pid int, name, state string, flags uint64, ends unix.Signal) {
	f.t.Helper()
	dir := filepath.Join(f.dir, strconv.Itoa(pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	stat := fmt.Sprintf("%d (%s) %s 1 1 1 0 -1 %d 0 0\n", pid, name, state, flags)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.obey[pid] = ends
}

func (f *fakeProc) kill(pid int, sig unix.Signal) error {
	f.log = append(f.log, fmt.Sprintf("%s %d", unix.SignalName(sig), pid))
	if sig == unix.SIGKILL || f.obey[pid] == sig {
		return os.RemoveAll(filepath.Join(f.dir, strconv.Itoa(pid)))
	}
	return nil
}

func TestStopProcesses(t *testing.T) {
	f := &fakeProc{t: t, dir: t.TempDir(), obey: map[int]unix.Signal{}}
	f.add(1, "init", "S", 0, 0)
	f.add(2, "kthreadd", "S", 0x00208040, 0)
	f.add(310, "containerd-shim", "S", 0, unix.SIGTERM)
	f.add(311, "a (b) c", "S", 0, 0)
	f.add(312, "defunct", "Z", 0, 0)
	p := processes{proc: f.dir, self: 1, kill: f.kill, grace: 10 * time.Millisecond, logf: func(format string, args ...any) {
		f.log = append(f.log, fmt.Sprintf(format, args...))
	}}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"SIGTERM 310", "SIGTERM 311",
		"killing a (b) c (pid 311), which did not end within 10ms", "SIGKILL 311",
	}
	if diff := cmp.Diff(want, f.log); diff != "" {
		t.Errorf("transcript (-want +got):\n%s", diff)
	}
}

// TestStopProcessesThatFork: what a process started while it was killed must go, too.
func TestStopProcessesThatFork(t *testing.T) {
	f := &fakeProc{t: t, dir: t.TempDir(), obey: map[int]unix.Signal{}}
	f.add(310, "sh", "S", 0, 0)
	kill := func(pid int, sig unix.Signal) error {
		if pid == 310 && sig == unix.SIGKILL {
			f.add(311, "sh", "S", 0, 0)
		}
		return f.kill(pid, sig)
	}
	p := processes{proc: f.dir, self: 1, kill: kill, grace: 10 * time.Millisecond, logf: t.Logf}
	if err := p.stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (sh) S 1 7 7 0 -1 4194304 0"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if q, ok := parseStat(7, stat); ok && strings.ContainsRune(q.name, 0) && !strings.ContainsRune(string(stat), 0) {
			t.Errorf("parseStat(%q) = %v", stat, q)
		}
	})
}
