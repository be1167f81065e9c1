package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

const (
	stateStopped = "stopped" // supervise.Stopped
	stateReady   = "ready"   // supervise.Ready
	lookInterval = 200 * time.Millisecond
	// stopLimit is more than a process may take before it is killed.
	stopLimit = time.Minute
	// readyLimit is how long is waited until what was started serves; it is
	// left running in any case.
	readyLimit = 3 * time.Minute
	// toolGrace is how long cairn-store may clean up after an interrupt.
	toolGrace = time.Minute
)

// storeUsers are the processes that use the store's files, in the order in
// which they are stopped.
var storeUsers = []string{"control", "store"}

// errNotConfirmed says that nobody wanted what was announced.
var errNotConfirmed = errors.New("nothing was changed")

func storeVerifyCommand(n node) *cobra.Command {
	return &cobra.Command{
		Use:     "verify FILE",
		Short:   "Read a snapshot and say what is in it",
		Long:    "Read all of a snapshot, ours or an etcd's, compare it with the hash at its end, and say what is in it.",
		Example: "  cairnctl store verify /tmp/state.db",
		Args:    usage(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return n.storeTool(cmd, "verify", "--", args[0]) },
	}
}

const restoreLong = `Go back to a snapshot: all of Kubernetes' state becomes what is in FILE, and every change since is lost.

The API server and the store are stopped, the snapshot is restored, and both are started again; pods go on running
meanwhile. The data that were there are kept in /var/lib/cairn/store/damaged.

This server is the store's only member afterwards. If there are others, stop the store on each of them first
(cairnctl stop store); afterwards move /var/lib/cairn/store/member away there and start it: it joins anew.`

const importLong = `Take over the state of an etcd: all of Kubernetes' state becomes what is in FILE, a snapshot that the etcd's

  etcdctl snapshot save FILE

has written. Stop the API servers of the etcd before, or what is written after the snapshot stays behind. Leases begin
anew; users, roles and alarms of the etcd are left behind. Secrets that were encrypted at rest need the same keys here.

For the rest it is what "cairnctl store restore" does.`

func storeRestoreCommand(n node, name string) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   name + " FILE",
		Short: map[string]string{"restore": "Go back to a snapshot", "import": "Take over the state of an etcd, from its snapshot"}[name],
		Long:  map[string]string{"restore": restoreLong, "import": importLong}[name],
		Example: map[string]string{
			"restore": "  cairnctl store snapshots\n  cairnctl store restore /var/lib/cairn/store/snapshots/snapshot-20261121T120000Z-4711.db",
			"import":  "  cairnctl store import /tmp/etcd-snapshot.db",
		}[name],
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return n.restoreStore(cmd, args[0], name, yes) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without a question")
	return cmd
}

func (n node) restoreStore(cmd *cobra.Command, file, word string, yes bool) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	// While everything runs still: a file that is of no use costs nothing.
	if err := n.storeTool(cmd, "verify", "--", path); err != nil {
		return err
	}
	s, err := n.storeStatus(cmd.Context())
	if errors.Is(err, errUnreachable) {
		return err
	}
	if online := othersOnline(s); len(online) > 0 {
		return fmt.Errorf("%w: the store runs on %s too, where it would go on without this server: stop it there first (cairnctl stop store)",
			errNotConfirmed, strings.Join(online, ", "))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\nKubernetes' state becomes what this snapshot holds.")
	if s.Revision != 0 {
		fmt.Fprintf(cmd.OutOrStdout(), " The store is at revision %d now.", s.Revision)
	}
	fmt.Fprintln(cmd.OutOrStdout(), " What was written since is lost.")
	if err := confirm(cmd, yes, word); err != nil {
		return err
	}
	return n.offline(cmd, func() error {
		return n.storeTool(cmd, "restore", "--dir", n.paths.storeDir, "--from", path, "--yes")
	})
}

// othersOnline names the members beside this one that are online.
func othersOnline(s admin.Status) []string {
	var names []string
	for _, m := range s.Members {
		if m.Online && m.ID != s.ID {
			names = append(names, m.Name)
		}
	}
	return names
}

const recoverLong = `For a store that lost the majority of its voters for good: this server becomes the only member of a new store
that holds this server's data. If the others may come back, start them instead: nothing is lost then.

What this server has not seen is lost. So run it with --dry-run on each server that is left, and without on the one
with the highest term, and of those the one with the highest index.

The API server and the store are stopped meanwhile and started again. The former data are kept in
/var/lib/cairn/store/damaged. The other servers' stores must not run again with their data: move
/var/lib/cairn/store/member away there before you start them, and they join anew.`

func storeRecoverCommand(n node) *cobra.Command {
	var dry, yes bool
	cmd := &cobra.Command{
		Use:     "recover",
		Short:   "Rebuild the store from this server when the majority is lost for good",
		Long:    recoverLong,
		Example: "  cairnctl store recover --dry-run\n  cairnctl store recover",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := n.storeStatus(cmd.Context())
			switch {
			case errors.Is(err, errUnreachable):
				return err
			case err == nil && s.Quorum:
				return fmt.Errorf("%w: the store has a quorum (%s), there is nothing to recover; a member that is lost is taken out by 'cairnctl store remove'",
					errNotConfirmed, votersText(s))
			}
			if online := othersOnline(s); len(online) > 0 && !dry {
				return fmt.Errorf("%w: the store runs on %s too: look there with 'cairnctl store recover --dry-run' which of them has seen most, then "+
					"stop it on all others (cairnctl stop store)", errNotConfirmed, strings.Join(online, ", "))
			}
			args := []string{"recover", "--dir", n.paths.storeDir}
			if dry {
				args = append(args, "--dry-run")
			}
			if yes {
				args = append(args, "--yes")
			}
			return n.offline(cmd, func() error { return n.storeTool(cmd, args...) })
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without a question")
	return cmd
}

// confirm returns nil when the operator agrees: by --yes, or by typing word.
func confirm(cmd *cobra.Command, yes bool, word string) error {
	if yes {
		return nil
	}
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return fmt.Errorf("%w: give --yes if that is what you want", errNotConfirmed)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Type %q to go on: ", word)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // What came before an error is not the word.
		answer <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answer:
		if got != word {
			return fmt.Errorf("%w: the answer was not %q", errNotConfirmed, word)
		}
		return nil
	case <-cmd.Context().Done():
		return fmt.Errorf("%w: interrupted", errNotConfirmed)
	}
}

// storeTool runs cairn-store, which has what this program is built without.
// An interrupt is passed on, and it is waited for.
func (n node) storeTool(cmd *cobra.Command, args ...string) error {
	c := exec.CommandContext(cmd.Context(), n.paths.storeProgram, args...)
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = toolGrace
	err := c.Run()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is on a node only", errUnreachable, n.paths.storeProgram)
	}
	if err != nil {
		return fmt.Errorf("cairn-store %s: %w", args[0], err)
	}
	return nil
}

// offline stops what uses the store, calls f and starts again what ran, also
// when f fails or the operator interrupts it.
func (n node) offline(cmd *cobra.Command, f func() error) (err error) {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	st, err := n.status(ctx)
	if err != nil {
		return err
	}
	var running []string
	for _, name := range storeUsers {
		p, ok := processOf(st, name)
		if !ok {
			return fmt.Errorf("this node runs no process %s: its state is in a datastore elsewhere", name)
		}
		if p.State != stateStopped {
			running = append(running, name)
		}
	}
	defer func() { err = errors.Join(err, n.startAgain(ctx, out, running)) }()
	for _, name := range running {
		fmt.Fprintf(out, "Stopping %s\n", name)
		if err := n.do(ctx, initctl.Request{Verb: initctl.VerbStop, Process: name}); err != nil {
			return err
		}
		if err := n.await(ctx, name, stateStopped, stopLimit); err != nil {
			return err
		}
	}
	return f()
}

// startAgain starts processes in the reverse order and waits until they serve.
// An interrupt ends the waiting alone.
func (n node) startAgain(ctx context.Context, out io.Writer, names []string) error {
	var problems []error
	started := slices.Clone(names)
	slices.Reverse(started)
	for _, name := range started {
		err := n.do(context.WithoutCancel(ctx), initctl.Request{Verb: initctl.VerbStart, Process: name})
		if err != nil {
			problems = append(problems, fmt.Errorf("start %s: %w; try 'cairnctl start %[1]s'", name, err))
		}
	}
	for _, name := range started {
		fmt.Fprintf(out, "Starting %s\n", name)
		if err := n.await(ctx, name, stateReady, readyLimit); err != nil {
			problems = append(problems, fmt.Errorf("%w; it goes on starting, see 'cairnctl logs %s'", err, name))
			break // The others wait for it.
		}
	}
	return errors.Join(problems...)
}

// await waits until a process is in a state.
func (n node) await(ctx context.Context, name, state string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	last := "not known"
	for {
		st, err := n.status(ctx)
		if p, ok := processOf(st, name); err == nil && ok {
			if p.State == state {
				return nil
			}
			last = strings.Join(nonEmpty(p.State, p.LastExit, p.Message), ", ")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: it is %s", name, state, last)
		case <-ticker.C:
		}
	}
}

func processOf(st status.Status, name string) (status.Process, bool) {
	for _, p := range st.Processes {
		if p.Name == name {
			return p, true
		}
	}
	return status.Process{}, false
}
