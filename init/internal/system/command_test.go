package system

import (
	"context"
	"fmt"
	"io"
	"log"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/reaper"
)

// TestRunKeepsTheEndOfOutput: a command may print without end, also after it ended itself.
func TestRunKeepsTheEndOfOutput(t *testing.T) {
	r, err := reaper.New()
	if err != nil {
		t.Fatal(err)
	}
	go r.Serve(t.Context())
	var console strings.Builder
	m := &machine{reaper: r, log: log.New(&console, "", 0)}
	if err := m.run(t.Context(), "/bin/sh", "-c", "seq 100000; echo the end"); err != nil {
		t.Fatal(err)
	}
	if n := console.Len(); n > maxOutput+100 || !strings.HasSuffix(console.String(), "\n100000\nthe end\n") {
		t.Errorf("the console got %d bytes; want the last %d", n, maxOutput)
	}
}

// TestRunEndsWhatACommandStarted: a shell that hangs usually waits for a program, which must go with it.
func TestRunEndsWhatACommandStarted(t *testing.T) {
	r, err := reaper.New()
	if err != nil {
		t.Fatal(err)
	}
	go r.Serve(t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = (&machine{reaper: r, log: log.New(io.Discard, "", 0)}).run(ctx, "/bin/sh", "-c", "sleep 300 & echo $!; wait")
	if err == nil {
		t.Fatal("run() of a command that hangs succeeded")
	}
	var pid int
	if _, scanErr := fmt.Sscan(err.Error()[strings.LastIndex(err.Error(), ":")+1:], &pid); scanErr != nil {
		t.Fatalf("no pid in %q: %v", err, scanErr)
	}
	for end := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("pid %d survives: %v", pid, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
}

func TestLastOutput(t *testing.T) {
	var o lastOutput
	for i := range 5000 {
		fmt.Fprintf(&o, "line %d\n", i)
	}
	text := o.text()
	if !strings.HasPrefix(text, "...\nline ") || !strings.HasSuffix(text, "\nline 4999") || len(o.data) > maxOutput || cap(o.data) > 4*maxOutput {
		t.Errorf("text() = %q of %d bytes", text, len(o.data))
	}
	fmt.Fprint(&o, strings.Repeat("x", 3*maxOutput))
	if got := o.text(); len(got) != len("...\n")+maxOutput {
		t.Errorf("text() of one endless line has %d bytes", len(got))
	}
}
