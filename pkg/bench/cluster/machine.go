package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/cairn-os/cairn/pkg/build/child"
	"github.com/cairn-os/cairn/pkg/nodens"
	"github.com/cairn-os/cairn/pkg/runner"
)

// role is what a machine does in its cluster.
type role string

const (
	server role = "server"
	agent  role = "agent"
)

// kind is a system under measurement: Cairn or vanilla Kubernetes.
type kind interface {
	name() string
	// prepare makes what the machines of a new cluster have before their first
	// start. Their trees are there, their states are empty.
	prepare(c *cluster) error
	// powerOn starts a machine.
	powerOn(ctx context.Context, m *machine) (*power, error)
	// attend does by hand what the machine's owner would until the first pod
	// can run, and returns when that is done or ctx ends.
	attend(ctx context.Context, m *machine) error
	// access returns how the API is reached, once the machine tells.
	access(ctx context.Context, m *machine) (*rest.Config, error)
	// process names a process by its command line; "" is for one that does not
	// count, for it is the benchmark's own.
	process(argv []string) string
	// programs are those that a machine has besides the built tree's, by path
	// without a leading slash.
	programs() map[string]string
}

// power is a machine that is on.
type power struct {
	pid     int
	console *runner.Console
	done    <-chan struct{} // closed when it has ended
	kill    func() error
}

// machine is a node in namespaces.
type machine struct {
	kind    kind
	name    string
	role    role
	address netip.Prefix
	dir     string // tree and state lie below

	power  *power // nil: off
	began  time.Time
	config *rest.Config // nil until known
	podNet netip.Prefix // the node's share of the pod network, once known; vanilla's only
}

func (m *machine) tree() string  { return filepath.Join(m.dir, "tree") }
func (m *machine) state() string { return filepath.Join(m.dir, "state") }

// gateway is the bridge.
func (m *machine) gateway() netip.Addr { return m.address.Masked().Addr().Next() }

func (m *machine) url() string { return fmt.Sprintf("https://%s:6443", m.address.Addr()) }

// install copies the built tree, with the programs added, to the machine.
func (m *machine) install(ctx context.Context, built string) error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	if err := copyAll(ctx, built, m.tree()); err != nil {
		return err
	}
	for path, file := range m.kind.programs() {
		if err := copyAll(ctx, file, filepath.Join(m.tree(), path)); err != nil {
			return err
		}
	}
	return nil
}

// copyAll copies a file or a whole tree with owners and modes.
func copyAll(ctx context.Context, from, to string) error {
	cmd := exec.CommandContext(ctx, "cp", "-aT", from, to)
	child.Bind(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}

// start powers the machine on.
func (m *machine) start(ctx context.Context) (err error) {
	if err := forget(m.address.Addr()); err != nil {
		return err
	}
	m.began = time.Now()
	if m.power, err = m.kind.powerOn(ctx, m); err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	return nil
}

// kill cuts its power.
func (m *machine) kill() error {
	if m.power == nil {
		return nil
	}
	p := m.power
	m.power = nil
	return p.kill()
}

// wipe takes the machine's disk away.
func (m *machine) wipe() error {
	m.config, m.podNet = nil, netip.Prefix{}
	return os.RemoveAll(m.state())
}

// why adds the end of the machine's console to an error.
func (m *machine) why(err error) error {
	if err == nil || m.power == nil {
		return err
	}
	return fmt.Errorf("%s: %w; the console's end:\n%s", m.name, err, m.power.console.Tail(25))
}

// client returns a client of the machine's API with connections of its own,
// which waits for nothing but the server.
func (m *machine) client(ctx context.Context) (*kubernetes.Clientset, error) {
	if m.config == nil {
		config, err := m.kind.access(ctx, m)
		if err != nil {
			return nil, err
		}
		m.config = config
	}
	return newClient(m.config)
}

// newClient makes a client that shares no connection with others, sends as
// fast as it can and, like Kubernetes' own programs, speaks Protobuf.
func newClient(config *rest.Config) (*kubernetes.Clientset, error) {
	c := rest.CopyConfig(config)
	c.QPS, c.Timeout = -1, 10*time.Second
	c.Dial = (&net.Dialer{Timeout: time.Second}).DialContext
	c.AcceptContentTypes, c.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	return kubernetes.NewForConfig(c)
}

// forget removes what this machine knows of the network card that had an
// address: the next one has another.
func forget(a netip.Addr) error {
	bridge, err := netlink.LinkByName(nodens.DefaultBridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	err = netlink.NeighDel(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: a.AsSlice(), Family: netlink.FAMILY_V4})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget the neighbour %s: %w", a, err)
	}
	return nil
}

// wait calls cond every 25 ms until it is done. What cond's last error was is
// part of the error when ctx ends or the machine does.
func (m *machine) wait(ctx context.Context, what string, cond func(context.Context) (bool, error)) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		done, err := cond(ctx)
		if done {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-m.power.done:
			return m.why(fmt.Errorf("wait until %s: the machine has ended", what))
		case <-ctx.Done():
			return m.why(fmt.Errorf("wait until %s: %w", what, errors.Join(ctx.Err(), last)))
		}
	}
}

// pause waits for d, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
