package reaper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// reaping returns a Reaper that serves until the test's end. No test of this package may run in parallel with one that
// uses cmd.Wait: the reaper would take its child.
func reaping(t *testing.T) *Reaper {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Serve(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func TestRun(t *testing.T) {
	r := reaping(t)
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "echo out; echo err >&2; exit 3")
	cmd.Stdout, cmd.Stderr = &out, &out
	err := r.Run(t.Context(), cmd)
	var ee *ExitError
	if !errors.As(err, &ee) || ee.Exit.Code != 3 {
		t.Errorf("Run() = %v; want exit status 3", err)
	}
	if got := out.String(); got != "out\nerr\n" {
		t.Errorf("output %q", got)
	}
	if err := r.Run(t.Context(), exec.Command("true")); err != nil {
		t.Errorf("Run(true) = %v", err)
	}
	if err := r.Run(t.Context(), exec.Command(t.TempDir()+"/none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run of nothing = %v; want not exist", err)
	}
}

func TestRunKilledByContext(t *testing.T) {
	r := reaping(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err := r.Run(ctx, exec.CommandContext(ctx, "sleep", "60"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() = %v; want the deadline", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
}

// TestStartIsRaceFree starts many children that end at once: each exit must find its owner.
func TestStartIsRaceFree(t *testing.T) {
	r := reaping(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 40 {
				code := (w*40 + i) % 100
				p, err := r.Start(exec.Command("sh", "-c", fmt.Sprintf("exit %d", code)))
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-p.Done():
				case <-time.After(20 * time.Second):
					t.Errorf("child %d was not reaped for its owner", p.PID())
					return
				}
				if got := p.Exit().Code; got != code {
					t.Errorf("exit code %d; want %d", got, code)
				}
			}
		})
	}
	wg.Wait()
	if n := r.Orphans(); n != 0 {
		t.Errorf("%d children were taken for orphans", n)
	}
}

func TestOrphansAreReapedAndCounted(t *testing.T) {
	r := reaping(t)
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "sleep 0.2 >/dev/null & echo $!")
	cmd.Stdout = &out
	if err := r.Run(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for r.Orphans() == 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := r.Orphans(); n != 1 {
		t.Errorf("Orphans() = %d; want 1", n)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(out.String())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan is still there: %v", err)
	}
}

func TestSignal(t *testing.T) {
	r := reaping(t)
	p, err := r.Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if got := p.Exit().String(); got != "killed by SIGTERM" {
		t.Errorf("exit %q", got)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal() after the end = %v; want ErrProcessDone", err)
	}
}

// TestNoDescriptorLeaks holds for both a child with a pipe and one without.
func TestNoDescriptorLeaks(t *testing.T) {
	r := reaping(t)
	run := func() {
		cmd := exec.Command("true")
		cmd.Stdout = new(bytes.Buffer)
		if err := r.Run(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	run()
	before := descriptors(t)
	for range 20 {
		run()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors after 20 runs, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestExitString(t *testing.T) {
	for want, e := range map[string]Exit{
		"exit status 0":                   {},
		"exit status 7":                   {Code: 7},
		"killed by SIGKILL":               {Code: -1, Signal: syscall.SIGKILL},
		"killed by SIGSEGV (core dumped)": {Code: -1, Signal: syscall.SIGSEGV, Core: true},
		"killed by signal 63":             {Code: -1, Signal: 63},
	} {
		if got := e.String(); got != want {
			t.Errorf("String() = %q; want %q", got, want)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { panic("a bug in the writer") }

// TestRunSurvivesItsWriter: this process may be PID 1, whose end is the machine's.
func TestRunSurvivesItsWriter(t *testing.T) {
	r := reaping(t)
	cmd := exec.Command("echo", "x")
	cmd.Stdout = brokenWriter{}
	if err := r.Run(t.Context(), cmd); err == nil || !strings.Contains(err.Error(), "a bug in the writer") {
		t.Errorf("Run() = %v; want the panic as an error", err)
	}
}
