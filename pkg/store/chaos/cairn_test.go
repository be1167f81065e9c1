//go:build cgo

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

// cairn is the store as one program of a lone member.
type lone struct{ binary string }

func (l lone) Program(n *nodes.Node, _ []*nodes.Node) (argv, env []string, err error) {
	return []string{l.binary, "--dir", filepath.Join(n.Dir, "store"), "--socket", Socket(n)}, []string{"MALLOC_ARENA_MAX=1"}, nil
}

// Status: a lone member leads if it answers.
func (l lone) Status(ctx context.Context, n *nodes.Node) (Status, error) {
	return Status{Leads: true, Term: 1}, nil
}

// TestLone breaks a store of one member: nothing is lost, whatever comes.
func TestLone(t *testing.T) { runs(t, lone{build(t)}, 1, 1, 20) }

// build compiles the store's program, with the environment that links dqlite.
func build(t *testing.T) string {
	t.Helper()
	if err := nodes.Available(); errors.Is(err, nodes.ErrUnavailable) {
		t.Skip(err)
	}
	if path := os.Getenv("CAIRN_CHAOS_STORE"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "cairn-store")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", binaries.Tags, "-o", path, "github.com/cairn-os/cairn/pkg/cmd/cairn-store")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("go build: %w\n%s", err, out))
	}
	return path
}
