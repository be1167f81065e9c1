//go:build cgo && linux

package powerloss_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// The test binary runs again as the store that is recorded (serve: data
// directory and socket follow) and as the one that opens states (verify).
// dqlite may end its process when it meets what it does not expect.
const (
	roleVariable = "CAIRN_TEST_POWERLOSS"
	roleServe    = "serve"
	roleVerify   = "verify"
)

// markInterval is how often the log's end is noted beside it: often, so that
// cuts meet it.
const markInterval = 250 * time.Millisecond

// patience is how long a store may take to start. One that has no leader by
// then will never have one.
const patience = time.Minute

func TestMain(m *testing.M) {
	logrus.SetLevel(logrus.FatalLevel)
	var err error
	switch role := strings.Fields(os.Getenv(roleVariable)); {
	case len(role) == 3 && role[0] == roleServe:
		err = serve(role[1], role[2])
	case len(role) == 1 && role[0] == roleVerify:
		err = verifyAll()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// open starts the store whose member is in dir, as cairn-store does.
func open(dir string) (*store.Backend, func() error, error) {
	found, err := damage.Inspect(dir)
	if err == nil {
		err = cmp.Or(found.Err(), damage.Repair(found))
	}
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	// Snapshots often, so that power is cut while they are taken.
	m, err := member.Start(member.Options{Dir: dir, Logger: log, Snapshot: member.SnapshotParams{Threshold: 128, Trailing: 256}})
	if err != nil {
		return nil, nil, err
	}
	connector, err := m.Connector()
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := store.Open(ctx, store.Options{Connector: connector, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return b, func() error { return errors.Join(b.Close(), m.Close()) }, nil
}

// serve runs a store until SIGTERM.
func serve(dir, socket string) error {
	b, stop, err := open(dir)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	l, err := store.Listen(ctx, socket)
	if err != nil {
		return errors.Join(err, stop())
	}
	fmt.Println("serving")
	go func() {
		for ctx.Err() == nil {
			if err := damage.UpdateMark(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			time.Sleep(markInterval)
		}
	}()
	return errors.Join(store.NewServer(b).Serve(ctx, l), stop())
}

// question names a directory to open.
type question struct {
	Dir string
	// Compacted is a revision whose compaction was acknowledged, 0 for none.
	Compacted int64
}

// report is what a store said of itself.
type report struct {
	Err      string
	Revision int64
	Keys     map[string]stored
}

// stored is a key's value and revision.
type stored struct {
	Hash     string
	Revision int64
}

func hashOf(value []byte) string {
	h := fnv.New64a()
	_, _ = h.Write(value)
	return fmt.Sprintf("%x", h.Sum64())
}

// verifyAll answers questions on standard input.
func verifyAll() error {
	in := json.NewDecoder(os.Stdin)
	for {
		var q question
		if err := in.Decode(&q); err != nil {
			return nil // The end of the test.
		}
		r, err := verify(q)
		if err != nil {
			r.Err = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
}

// verify opens a store, reads all and writes something.
func verify(q question) (r report, err error) {
	b, stop, err := open(q.Dir)
	if err != nil {
		return r, fmt.Errorf("does not start: %w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rev, kvs, err := b.List(ctx, prefix, prefixEnd, 0, 0, false)
	if err != nil {
		return r, fmt.Errorf("list: %w", err)
	}
	r.Revision, r.Keys = rev, map[string]stored{}
	for _, kv := range kvs {
		r.Keys[kv.Key] = stored{hashOf(kv.Value), kv.ModRevision}
	}
	if q.Compacted > 1 {
		if _, _, err := b.List(ctx, prefix, prefixEnd, 1, q.Compacted-1, true); !errors.Is(err, server.ErrCompacted) {
			return r, fmt.Errorf("list at %d, compacted up to %d: %v; want %w", q.Compacted-1, q.Compacted, err, server.ErrCompacted)
		}
	}
	written, err := b.Put(ctx, "/after", []byte("a cut"), 0)
	if err != nil {
		return r, fmt.Errorf("write: %w", err)
	}
	if _, kv, err := b.Get(ctx, "/after", 0, false); err != nil || kv == nil || kv.ModRevision != written || written <= rev {
		return r, fmt.Errorf("read of what was written at %d, after %d: %+v, %v", written, rev, kv, err)
	}
	return r, nil
}

// spawn runs this binary in a role.
func spawn(t *testing.T, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "MALLOC_ARENA_MAX=1")
	cmd.Stderr = t.Output()
	t.Cleanup(func() {
		if cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// startStore runs a store on dir and waits until it serves.
func startStore(t *testing.T, dir, socket string) *exec.Cmd {
	t.Helper()
	cmd := spawn(t, roleServe+" "+dir+" "+socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "serving\n" {
		t.Fatalf("the store did not start: %q, %v", line, err)
	}
	return cmd
}

// verifier is a process that opens states, one after the other.
type verifier struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

// ask returns what the store in q.Dir says. A process that ends, or says
// nothing, is the store's fault; the next question goes to a new one.
func (v *verifier) ask(t *testing.T, q question) report {
	if v.cmd == nil {
		if err := v.start(t); err != nil {
			t.Fatal(err)
		}
	}
	cmd := v.cmd
	overdue := time.AfterFunc(3*patience, func() { _ = cmd.Process.Kill() })
	defer overdue.Stop()
	var r report
	if err := errors.Join(v.in.Encode(q), v.out.Decode(&r)); err != nil {
		r.Err = fmt.Sprintf("its process ended: %v, %v", err, cmd.Wait())
		v.cmd = nil
	}
	return r
}

// end ends the process, which then has no file open any more.
func (v *verifier) end() {
	if v.cmd != nil {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // Killed.
		v.cmd = nil
	}
}

func (v *verifier) start(t *testing.T) error {
	cmd := spawn(t, roleVerify)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	v.cmd, v.in, v.out = cmd, json.NewEncoder(in), json.NewDecoder(out)
	return cmd.Start()
}
