//go:build cgo && linux

package space_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/space"
)

// childDir makes the test binary run a member that writes there.
const childDir = "CAIRN_TEST_SPACE_DIR"

// params close a segment every 64 entries, so that new ones are soon needed.
var params = member.SnapshotParams{Threshold: 64, Trailing: 128}

// TestChild is the process of the member: it inserts rows for ever and says
// which were acknowledged.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("the other tests' child process")
	}
	if err := runChild(dir); err != nil {
		fmt.Println("failed:", err)
		t.Fatal(err)
	}
}

func startMember(dir string) (*member.Member, *sql.DB, error) {
	m, err := member.Start(member.Options{Dir: dir, Snapshot: params, Latency: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	c, err := m.Connector()
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	return m, db, nil
}

func runChild(dir string) error {
	_, db, err := startMember(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)"); err != nil {
		return err
	}
	value := make([]byte, 4000)
	for id := 1; ; id++ {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := db.ExecContext(ctx, "INSERT INTO t (id, v) VALUES (?, ?)", id, value)
		cancel()
		if err != nil {
			fmt.Println("error", id, err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		fmt.Println("acknowledged", id)
	}
}

// writer is the child and what it said.
type writer struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	ids  map[int]bool
	errs []string
	done chan struct{}
}

func startWriter(t *testing.T, dir string) *writer {
	t.Helper()
	return startWriterAs(t, "TestChild", dir)
}

func startWriterAs(t *testing.T, test, dir string) *writer {
	t.Helper()
	w := &writer{cmd: exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v"), ids: map[int]bool{}, done: make(chan struct{})}
	w.cmd.Env = append(os.Environ(), childDir+"="+dir, "MALLOC_ARENA_MAX=1")
	w.cmd.Stderr = t.Output()
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.kill)
	go func() {
		defer close(w.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.mu.Lock()
			if id, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				n, _ := strconv.Atoi(id)
				w.ids[n] = true
			} else {
				w.errs = append(w.errs, lines.Text())
			}
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *writer) kill() {
	_ = w.cmd.Process.Kill()
	<-w.done
	_ = w.cmd.Wait()
}

// counts returns how many writes were acknowledged and how many failed.
func (w *writer) counts() (acknowledged, failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.errs {
		if strings.HasPrefix(line, "error ") {
			failed++
		}
	}
	return len(w.ids), failed
}

// said reports whether the child printed the line.
func (w *writer) said(line string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.errs, line)
}

// waitFor polls until ok holds.
func (w *writer) waitFor(t *testing.T, what string, ok func(acknowledged, failed int) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(w.counts()); time.Sleep(5 * time.Millisecond) {
		ended := false
		select {
		case <-w.done:
			ended = !ok(w.counts())
		default:
		}
		if ended || time.Now().After(end) {
			a, f := w.counts()
			w.kill()
			t.Fatalf("%s: not within a minute, or the process ended: %v; %d acknowledged, %d failed\n%s", what, w.cmd.ProcessState, a, f, strings.Join(w.errs, "\n"))
		}
	}
}

// disk mounts a file system of the given size.
func disk(t *testing.T, kind string, mib int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	var out []byte
	switch kind {
	case "tmpfs":
		err = unix.Mount("tmpfs", at, "tmpfs", 0, fmt.Sprintf("size=%dm", mib))
	default:
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, int64(mib)<<20)); err != nil {
			t.Fatal(err)
		}
		if out, err = exec.Command("mkfs."+kind, "-q", "-m", "0", image).CombinedOutput(); err == nil {
			out, err = exec.Command("mount", "-o", "loop", image, at).CombinedOutput()
		}
	}
	if err != nil {
		t.Skipf("no %s can be mounted here: %v %s", kind, err, bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// fill takes all space but leave bytes, and goes on to take what becomes
// free, until hold is called; free gives it all back.
func fill(t *testing.T, at string, leave int64) (hold, free func()) {
	t.Helper()
	f, err := os.CreateTemp(at, "filler")
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	take := func() {
		for n := int64(64 << 20); n >= 4096; n /= 2 {
			for {
				if u, err := space.Look(at); err != nil || u.Free < leave+n {
					break
				}
				if syscall.Fallocate(int(f.Fd()), 0, end, n) != nil {
					break
				}
				end += n
			}
		}
	}
	take()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				take()
			}
		}
	}()
	var once sync.Once
	hold = func() { once.Do(func() { close(stop); <-done }) }
	free = func() {
		hold()
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	t.Cleanup(free)
	return hold, free
}

// TestFullDisk fills the disk under a member that writes. It loses its
// leadership, goes on by itself when there is space again, and keeps what it
// acknowledged. A member that is started on the full disk says that it is
// full, and starts after the reserve was released.
func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		kind    string
		mib     int
		reserve bool
	}{{"ext4", 2048, true}, {"tmpfs", 96, false}} {
		t.Run(c.kind, func(t *testing.T) {
			at := disk(t, c.kind, c.mib)
			dir := filepath.Join(at, "member")
			reserve, err := space.NewReserve(filepath.Join(at, "reserve"), 0)
			if err != nil {
				t.Fatal(err)
			}
			w := startWriter(t, dir)
			w.waitFor(t, "writes", func(a, _ int) bool { return a >= 150 })
			_, free := fill(t, at, 0)
			w.waitFor(t, "errors on a full disk", func(_, f int) bool { return f >= 10 })
			before, failed := w.counts()
			free()
			w.waitFor(t, "writes after space was freed", func(a, _ int) bool { return a >= before+150 })
			t.Logf("%d acknowledged, then %d failed, first: %s", before, failed, w.errs[1])

			hold, free := fill(t, at, 0)
			_, failed = w.counts()
			w.waitFor(t, "errors on a full disk", func(_, f int) bool { return f >= failed+3 })
			w.kill()
			hold()
			refused(t, dir)
			if !c.reserve {
				free()
			} else if err := reserve.Release(); err != nil {
				t.Fatal(err)
			}
			verify(t, dir, w.ids)
		})
	}
}

// refused starts a member on a full disk, in a process of its own: what dqlite
// leaves in one where it did not start makes it crash later.
func refused(t *testing.T, dir string) {
	t.Helper()
	w := startWriter(t, dir)
	w.waitFor(t, "the end of a member on a full disk", func(int, int) bool {
		select {
		case <-w.done:
			return true
		default:
			return false
		}
	})
	said := strings.Join(w.errs, "\n")
	if !strings.Contains(said, "failed:") || !damage.IsFull(errors.New(said)) {
		t.Errorf("a member that starts on a full disk ends with something that IsFull does not know: %s", said)
	}
}

// verify starts a member and looks for the ids, writes, and stops in order.
func verify(t *testing.T, dir string, ids map[int]bool) {
	t.Helper()
	r, err := damage.Inspect(dir)
	if err != nil || r.Damaged() {
		t.Errorf("after the full disk: %v\n%s", err, r)
	}
	if err := damage.Repair(r); err != nil {
		t.Fatal(err)
	}
	m, db, err := startMember(dir)
	if err != nil {
		t.Fatalf("start with space again: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rows, err := db.QueryContext(ctx, "SELECT id FROM t")
	if err != nil {
		t.Fatal(err)
	}
	missing := len(ids)
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		if ids[id] {
			missing--
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged writes are missing", missing, len(ids))
	}
	if _, err := db.ExecContext(ctx, "INSERT INTO t (v) VALUES (x'00')"); err != nil {
		t.Errorf("a write with space again: %v", err)
	}
	if err := errors.Join(db.Close(), m.Close()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestMonitor fills a disk by steps and sees the states, and the reserve
// released and rebuilt.
func TestMonitor(t *testing.T) {
	at := disk(t, "ext4", 2048)
	reserve, err := space.NewReserve(filepath.Join(at, "reserve"), 0)
	if err != nil {
		t.Fatal(err)
	}
	u, err := space.Look(at)
	if err != nil {
		t.Fatal(err)
	}
	if reserve.Size() < u.Size/60 || reserve.Size() > u.Size/50 {
		t.Errorf("a reserve of %d MiB on a disk of %d MiB; want 2 %%", reserve.Size()>>20, u.Size>>20)
	}
	m, err := space.NewMonitor(at, reserve, space.Thresholds{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	limits := space.DefaultThresholds(u.Size)
	for _, c := range []struct {
		name  string
		leave int64 // -1: all is free.
		want  space.State
		held  bool
	}{
		{"empty", -1, space.OK, true},
		{"low", limits.Low - 1<<20, space.Low, true},
		{"full", limits.Full - 1<<20, space.Full, false},
		// 2 MiB more than the limit, and the reserve's space beside it: not
		// enough to leave the state.
		{"hardly better", limits.Full + 2<<20 + reserve.Size(), space.Full, false},
		{"all gone", 1 << 20, space.Exhausted, false},
		{"better", limits.Full*5/4 + 2<<20 + reserve.Size(), space.Low, false},
		{"empty again", -1, space.OK, true},
	} {
		free := func() {}
		if c.leave >= 0 {
			_, free = fill(t, at, c.leave)
		}
		s, u, err := m.Look()
		if err != nil || s != c.want {
			t.Errorf("%s: %v with %d MiB free, %v; want %v", c.name, s, u.Free>>20, err, c.want)
		}
		if held := reserve.Held() == reserve.Size(); held != c.held {
			t.Errorf("%s: the reserve is held: %v; want %v", c.name, held, c.held)
		}
		free()
	}
}
