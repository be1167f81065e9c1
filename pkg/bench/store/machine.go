package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/runner"
	"github.com/cairn-os/cairn/pkg/status"
)

// machine is a single server in namespaces whose apiserver uses a store of
// ours instead of the machine's own.
type machine struct {
	*runner.Native
	*runner.Cluster
	dir     string
	console *os.File
	// socket is where the apiserver looks for its store, as seen from outside
	// of the namespaces; own is where the machine's own store still serves.
	socket, own string
}

// startMachine boots the built root tree with its state below dir and waits
// until the node is Ready, with its own store.
func startMachine(ctx context.Context, built *image.Output, name string, address netip.Prefix, dir string) (*machine, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &machine{dir: dir}
	var err error
	if m.console, err = os.Create(filepath.Join(dir, "console.log")); err != nil {
		return nil, err
	}
	m.Native, err = runner.StartNative(ctx, built, runner.NativeOptions{
		Name: name, Address: address, State: filepath.Join(dir, "state"), Console: m.console,
	})
	if err != nil {
		return nil, errors.Join(err, m.console.Close())
	}
	if m.Cluster, err = runner.Access(ctx, m, built, dir); err == nil {
		err = m.WaitNodeReady(ctx, name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w; the console's end:\n%s", err, m.Console().Tail(25)), m.close())
	}
	run := fmt.Sprintf("/proc/%d/root/run/cairn/", m.PID())
	m.socket, m.own = run+"store.sock", run+"own.sock"
	return m, nil
}

func (m *machine) close() error { return errors.Join(m.Kill(), m.console.Close()) }

// setAside frees the path of the store's socket for another store.
func (m *machine) setAside() error { return os.Rename(m.socket, m.own) }

// restart kills the named processes of the machine and waits until they are
// ready again and the node is.
func (m *machine) restart(ctx context.Context, names ...string) error {
	before, err := m.status(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := m.Run(ctx, fmt.Sprintf("kill -9 %d", before[name].PID)); err != nil {
			return err
		}
	}
	for _, name := range names {
		for {
			now, err := m.status(ctx)
			if err == nil && now[name].Restarts > before[name].Restarts && now[name].ReadyS > 0 {
				break
			}
			if err := pause(ctx, 500*time.Millisecond); err != nil {
				return fmt.Errorf("wait for %s to be ready again: %w", name, err)
			}
		}
	}
	return m.WaitNodeReady(ctx, m.Name())
}

func (m *machine) status(ctx context.Context) (map[string]status.Process, error) {
	text, err := m.Run(ctx, "cairnctl status --output json")
	if err != nil {
		return nil, err
	}
	var s status.Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return nil, fmt.Errorf("status of %s: %w", m.Name(), err)
	}
	all := map[string]status.Process{}
	for _, p := range s.Processes {
		all[p.Name] = p
	}
	return all, nil
}
