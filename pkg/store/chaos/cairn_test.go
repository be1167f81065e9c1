//go:build cgo

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// lone is the store as one program of a member without others.
type lone struct{ binary string }

func (l lone) Program(n *nodes.Node, _ []*nodes.Node) (argv, env []string, err error) {
	return []string{
		l.binary, "--dir", filepath.Join(n.Dir, "store"), "--socket", Socket(n), "--admin-socket", adminSocket(n),
	}, []string{"MALLOC_ARENA_MAX=1"}, nil
}

func adminSocket(n *nodes.Node) string { return filepath.Join(n.Dir, "admin.sock") }

func (l lone) Status(ctx context.Context, n *nodes.Node) (Status, error) {
	c := admin.Open(adminSocket(n))
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{Leads: s.Leader == s.ID, Term: s.Term}
	for _, m := range s.Members {
		if m.Role == "voter" {
			out.Voters++
		}
	}
	return out, nil
}

// cluster is the store as a member of several.
type cluster struct {
	lone
	ca   *peertest.CA
	keys string // directory of the certificates
}

func (c cluster) Program(n *nodes.Node, all []*nodes.Node) (argv, env []string, err error) {
	argv, env, err = c.lone.Program(n, all)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now() // The nodes' clocks jump by hours.
	credentials, err := c.ca.Issue(c.keys, fmt.Sprintf("node%d", n.Index), peertest.Valid(now.AddDate(0, 0, -2), now.AddDate(0, 0, 2)))
	if err != nil {
		return nil, nil, err
	}
	argv = append(argv, "--name", fmt.Sprintf("node%d", n.Index), "--listen", peerAddress(n), "--advertise", peerAddress(n),
		"--ca", credentials.CA, "--cert", credentials.Certificate, "--key", credentials.Key)
	if n.Index > 0 {
		argv = append(argv, "--join", peerAddress(all[0]))
	}
	return argv, env, nil
}

func peerAddress(n *nodes.Node) string { return n.Address.String() + ":2380" }

// TestCluster breaks a store of three members. The brief seeds kill, pause,
// isolate, mute, deafen and fill the disk of whoever leads.
func TestCluster(t *testing.T) {
	binary, keys := build(t), t.TempDir()
	ca, err := peertest.NewCA(keys)
	if err != nil {
		t.Fatal(err)
	}
	runs(t, cluster{lone{binary}, ca, keys}, 3, 100, 90, 6708, 12803)
}

// TestLone breaks a store of one member.
func TestLone(t *testing.T) { runs(t, lone{build(t)}, 1, 10, 1) }

// build compiles the store's program, with the environment that links dqlite.
func build(t *testing.T) string {
	t.Helper()
	if err := nodes.Available(); errors.Is(err, nodes.ErrUnavailable) {
		t.Skip(err)
	}
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildOnce returns CAIRN_CHAOS_STORE, if that names a program, or builds one
// that stays until the tests end.
var buildOnce = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("CAIRN_CHAOS_STORE"); path != "" {
		return path, nil
	}
	path := filepath.Join(scratch, "cairn-store")
	out, err := exec.Command("go", "build", "-tags", binaries.Tags, "-o", path, "github.com/cairn-os/cairn/pkg/cmd/cairn-store").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})
