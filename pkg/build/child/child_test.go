package child

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"
	"time"
)

func TestBindKillsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "sleep 300 & echo started; wait")
	Bind(cmd)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); err != nil {
		t.Fatalf("first line %q: %v", line, err)
	}
	cancel()
	// sleep holds the other end of the pipe: it closes when sleep is dead.
	closed := make(chan error, 1)
	go func() {
		_, err := out.ReadByte()
		closed <- err
	}()
	select {
	case err := <-closed:
		if !errors.Is(err, io.EOF) {
			t.Errorf("read = %v; want EOF", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the shell's child outlived it")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a killed program gave no error")
	}
}
