package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/cgroup"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/supervise"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// memory is how much of the node's memory a process's Go collector aims to stay below: a share, within bounds. It is a
// hint that makes the collector work harder, no limit that kills.
type memory struct {
	percent  int64
	min, max int64 // bytes
}

func (s memory) of(total int64) int64 { return min(max(total*s.percent/100, s.min), s.max) }

// Processes that wait for other machines, or for a person, wait themselves and say for what; starting them anew would
// change nothing.
const (
	// forever is for joining: the server may be bought next week.
	forever time.Duration = -1
	// datastoreTimeout is for who waits for a datastore elsewhere.
	datastoreTimeout = 24 * time.Hour
	// othersTimeout is for a store that waits for the majority of its members, and for a node that waits for a server:
	// after a power cut machines come back one after the other. Shorter than the datastore's, because here a process that
	// hangs is as likely.
	othersTimeout = 30 * time.Minute
)

// services is the table of supervised processes for a node with the given memory in bytes. OOM scores order who goes
// first when memory runs out: pods (0 to 1000), then what restarts cheaply, at last what everything stands on.
//
// What a machine runs follows from its role: a server all of it, an agent no store and no control, and a witness a store
// alone. With an etcd cluster elsewhere there is no store: the apiserver asks the cluster itself. With an SQL database
// elsewhere the store serves it.
//
// A node does not wait for its own control: through its balancer it uses any server, so that a server whose control
// plane or store is broken still runs its pods. Its heavy parts wait for the first server that answers, inside, which
// keeps them from starting at the same time as the apiserver where there is one server only.
func services(total int64, ssh bool, datastore config.DatastoreKind, role string) []supervise.Service {
	const (
		conf = "/" + effectiveConfig
		// Where cairnctl finds the store: pkg/store/admin.Socket. That package speaks HTTP, which init does not link.
		storeAdmin = "/run/cairn/store-admin.sock"
	)
	table := []supervise.Service{
		{
			// On a witness it stays and renews the store's certificate; elsewhere others do that, and it has an end.
			Name: "join", Argv: []string{"/usr/bin/cairn-kube", "join", "--config", conf}, Notify: true, Oneshot: role != config.RoleWitness,
			ReadyTimeout: forever, OOMScore: -955, MemoryLimit: memory{4, 32 * mib, 128 * mib}.of(total), GOGC: 30,
		},
		{
			Name: "store", Argv: []string{"/usr/bin/cairn-store", "--config", conf, "--admin-socket", storeAdmin}, Notify: true, After: []string{"join"},
			// One arena: glibc's default of eight per core costs tens of megabytes in dqlite. The threshold: glibc raises
			// its own with each large block that is freed, and then keeps what others leave.
			Env: []string{"MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=65536"}, ReadyTimeout: othersTimeout,
			OOMScore: -970, MemoryLimit: memory{6, 48 * mib, 512 * mib}.of(total), GOGC: 30, StopGrace: 20 * time.Second,
		},
		{
			Name: "containerd", Argv: []string{"/usr/bin/cairn-kube", "containerd", "--config", conf}, Notify: true, MainOnly: true,
			OOMScore: -999, MemoryLimit: memory{6, 48 * mib, 512 * mib}.of(total), GOGC: 30, StopGrace: 15 * time.Second,
		},
		{
			Name: "control", Argv: []string{"/usr/bin/cairn-kube", "control", "--config", conf}, Notify: true, After: []string{"join", "store"},
			OOMScore: -950, MemoryLimit: memory{40, 200 * mib, 4096 * mib}.of(total), GOGC: 30, StopGrace: 15 * time.Second,
		},
		{
			Name: "node", Argv: []string{"/usr/bin/cairn-kube", "node", "--config", conf}, Notify: true, After: []string{"join", "containerd"}, ReadyTimeout: othersTimeout,
			OOMScore: -998, MemoryLimit: memory{8, 64 * mib, 1024 * mib}.of(total), GOGC: 30, StopGrace: 15 * time.Second, MainOnly: true,
		},
		{
			Name: "cairnd", Argv: []string{"/usr/bin/cairnd", "--config", conf}, Notify: true,
			OOMScore: -960, MemoryLimit: memory{4, 24 * mib, 128 * mib}.of(total), GOGC: 30,
		},
	}
	table = slices.DeleteFunc(table, func(s supervise.Service) bool {
		return role == config.RoleAgent && (s.Name == "store" || s.Name == "control") ||
			role == config.RoleWitness && (s.Name == "containerd" || s.Name == "control" || s.Name == "node")
	})
	table = withDatastore(table, datastore)
	if ssh {
		table = append(table, supervise.Service{
			// In the foreground, messages to standard error, no passwords.
			Name: "sshd", Argv: []string{"/usr/sbin/dropbear", "-F", "-E", "-s", "-r", hostKey, "-p", "22"}, OOMScore: -900,
			MainOnly: true, // sessions outlive a restart: it may well be asked for in one
		})
	}
	return table
}

// withDatastore fits the table to where the cluster's state is kept.
func withDatastore(table []supervise.Service, datastore config.DatastoreKind) []supervise.Service {
	isStore := func(name string) bool { return name == "store" }
	for i := range table {
		s := &table[i]
		switch {
		case datastore == config.SQL && s.Name == "store":
			s.ReadyTimeout = datastoreTimeout
		case datastore == config.Etcd && slices.ContainsFunc(s.After, isStore):
			s.ReadyTimeout = datastoreTimeout
			s.After = slices.DeleteFunc(s.After, isStore)
		}
	}
	if datastore == config.Etcd {
		table = slices.DeleteFunc(table, func(s supervise.Service) bool { return isStore(s.Name) })
	}
	return table
}

// role is what the machine is, whatever its configuration says by now.
func (m *machine) role() string {
	return string(membership.RoleOf(membership.Path, membership.Role(m.config.EffectiveRole())))
}

// startServices starts the control socket and the supervisor, which go on until shutdown.
func (m *machine) startServices(ctx context.Context) error {
	total, err := totalMemory()
	if err != nil {
		return err
	}
	table := services(total, len(m.config.SSHAuthorizedKeys) > 0, m.config.Cairn.Datastore.Kind(), m.role())
	if m.opt.Container {
		m.log.Print("in a container the host's kernel decides who is killed when memory runs out: no oom scores")
		for i := range table {
			table[i].OOMScore = 0
			if table[i].Name == "cairnd" {
				table[i].Argv = append(table[i].Argv, "--clock=false") // the clock is the host's
			}
		}
	}
	tree, err := cgroup.Open(cgroup.Root)
	if err != nil {
		if !errors.Is(err, cgroup.ErrUnsupported) {
			return err
		}
		m.log.Printf("services share one cgroup: %v", err)
	}
	s, err := supervise.New(supervise.Options{
		Reaper: m.reaper, Cgroup: tree, LogDir: "/run/cairn/log", NotifyDir: "/run/cairn/notify",
		Env: append(baseEnv(), m.ownerEnv()...), Logf: m.log.Printf, Since: m.opt.Since, OnChange: m.serviceChanged,
	}, table)
	if err != nil {
		return err
	}
	server, err := initctl.Listen(initctl.Path, handler{m}, m.log.Printf)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.supervisor = s
	m.mu.Unlock()
	// Not the boot's context: services are stopped by shutdown, in its order, and the socket answers until then.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	listening := m.background("control socket", func() error { return ended(running, server.Serve(running)) })
	supervising := m.background("supervisor", func() error { return ended(running, s.Run(running)) })
	m.stopServices = func() {
		stop()
		<-supervising
		<-listening
		m.mu.Lock()
		m.supervisor = nil // it no longer counts as a sign of life
		m.mu.Unlock()
	}
	return nil
}

// ended drops the error that only repeats that ctx is over.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// serviceChanged puts the first readiness of each process into the timeline, and the end of those that have one.
func (m *machine) serviceChanged(p status.Process) {
	if p.State != string(supervise.Ready) && p.State != string(supervise.Done) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addMark(p.Name+" "+p.State, m.opt.Since())
}

func totalMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("size of memory: %w", err)
	}
	return int64(uint64(info.Totalram) * uint64(info.Unit)), nil
}
