// Package nodens runs a node in Linux namespaces of the build machine: the
// real root tree and the real init, at native speed, with its own mounts,
// processes, network, host name and cgroups. Nodes meet on a bridge.
//
// A program that starts nodes must call Child first of all: the node's first
// process is this same program, started again inside the namespaces.
// DESIGN.md tells what a node sees and how it is cleaned up.
package nodens

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config describes a node.
type Config struct {
	// Tree is the unpacked root file system. It is never written to: the node
	// has an overlay of it whose changes end with the node.
	Tree string
	// StateDir is kept between starts: StateDir/var is the node's /var.
	StateDir string
	// Name is the node's host name at first, and names its cgroups.
	Name string
	// Address is the node's address and its network, such as 10.88.0.2/24. The
	// network's first address goes to the bridge; eth0 is handed over without
	// an address, as a network card is: the node's configuration sets it.
	Address netip.Prefix
	// Address6 is the same for IPv6, such as fd00:88::2/64, for nodes with both
	// families; the zero value is a node without.
	Address6 netip.Prefix
	// Bridge joins nodes; empty means DefaultBridge.
	Bridge string
	// Console receives what the node writes to its console; nil drops it.
	Console io.Writer
	// ConsoleIn is typed at the console; it may be nil.
	ConsoleIn io.Reader
	// Cmdline is what a kernel command line would say.
	Cmdline string
	// Init is the first process; empty means init in container mode with
	// Cmdline.
	Init []string
	// Seed are files written before init starts, by absolute path: below /var
	// they are kept, elsewhere they end with the node.
	Seed map[string][]byte
}

// DefaultBridge is the bridge of nodes that name none.
const DefaultBridge = "cairn0"

// startTimeout bounds the time from the fork to init's first instruction.
const startTimeout = 30 * time.Second

// ErrUnavailable says that this machine or user cannot run nodes; the error
// that wraps it says why. Tests skip on it.
var ErrUnavailable = errors.New("nodes in namespaces cannot run here")

// Available returns nil where nodes can run, or an error that wraps
// ErrUnavailable.
func Available() error {
	if err := checkChild(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: not root", ErrUnavailable)
	}
	// A mount of its own is what the least privileged containers lack.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{childEnv + "=" + probe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %w %s", ErrUnavailable, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// checkChild keeps a program that forgot Child from starting itself for ever.
func checkChild() error {
	if os.Getenv(childEnv) != "" {
		return errors.New("this program does not call nodens.Child before anything else")
	}
	return nil
}

const cloneFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Exit tells how a node's init ended.
type Exit struct {
	Code   int            // 0: powered off, 3: wants a reboot; -1: by signal
	Signal syscall.Signal // what killed it, when Code is -1
}

// Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	cfg     Config
	pid     int
	cgroups cgroups
	link    string
	cable   *Link
	lock    *os.File

	clean func() error // undoes what start made outside of the namespaces, once

	done chan struct{} // closed when init is dead and all is cleaned up
	exit Exit          // valid after done
	err  error         // of cleaning up, valid after done
}

// Start starts a node and returns when its init has begun. The node lives
// until its init ends, until Stop or Kill, or until this program ends.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	if err := Available(); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	n := &Node{cfg: cfg, link: linkName(cfg.Name), done: make(chan struct{})}
	n.cable = &Link{node: n}
	n.clean = sync.OnceValue(n.cleanUp)
	if err := n.start(ctx); err != nil {
		return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
	}
	return n, nil
}

// validName keeps names usable as directory and host names.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *Config) complete() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("name %q is no host name", c.Name)
	}
	if !c.Address.IsValid() || c.Address.Addr() == bridgeAddress(c.Address).Addr() {
		return fmt.Errorf("address %s: want one of a network, other than its first, which is the bridge's", c.Address)
	}
	if c.Address6.IsValid() && (!c.Address6.Addr().Is6() || c.Address6.Addr() == bridgeAddress(c.Address6).Addr()) {
		return fmt.Errorf("address %s: want one of an IPv6 network, other than its first, which is the bridge's", c.Address6)
	}
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if len(c.Init) == 0 {
		c.Init = []string{"/usr/sbin/init", "--container", "--cmdline", c.Cmdline}
	}
	if c.Console == nil {
		c.Console = io.Discard
	}
	for _, dir := range []*string{&c.Tree, &c.StateDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		if strings.ContainsAny(abs, ":,\\") {
			return fmt.Errorf("path %s: overlayfs options cannot hold it", abs)
		}
		*dir = abs
	}
	return nil
}

// start makes what is outside of the namespaces, then the first process.
func (n *Node) start(ctx context.Context) (err error) {
	for _, dir := range []string{"var", "mnt"} {
		if err := os.MkdirAll(filepath.Join(n.cfg.StateDir, dir), 0o755); err != nil {
			return err
		}
	}
	if n.lock, err = lockState(n.cfg.StateDir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.clean())
		}
	}()
	if n.cgroups, err = openCgroups(n.cfg.Name); err != nil {
		return err
	}
	if err := n.cgroups.create(ctx); err != nil {
		return err
	}
	return n.spawn(ctx)
}

// lockState keeps two nodes from using one state directory.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w (is the node running already?)", f.Name(), err)
	}
	return f, nil
}

// spawn starts the first process and watches it from then on.
func (n *Node) spawn(ctx context.Context) error {
	con, err := openConsole(n.cfg.Console, n.cfg.ConsoleIn)
	if err != nil {
		return err
	}
	orderRead, orderWrite, err := os.Pipe()
	if err != nil {
		return errors.Join(err, con.close())
	}
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		return errors.Join(err, con.close(), orderRead.Close(), orderWrite.Close())
	}
	defer orderWrite.Close()
	defer reportRead.Close()

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{childEnv + "=" + strconv.Itoa(os.Getpid())}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = con.slave, con.slave, con.slave
	cmd.ExtraFiles = []*os.File{orderRead, reportWrite}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags, Setsid: true, Pdeathsig: syscall.SIGKILL}

	started := make(chan error)
	go n.watch(cmd, con, started)
	err = <-started
	orderRead.Close()
	reportWrite.Close()
	if err != nil {
		return err
	}
	if err := n.order(ctx, con, orderWrite, reportRead); err != nil {
		killErr := n.signal(unix.SIGKILL)
		<-n.done
		return errors.Join(err, killErr)
	}
	return nil
}

// watch runs cmd from start to end in one goroutine on one thread: the signal
// that ends the node with this program is bound to the thread that forked.
func (n *Node) watch(cmd *exec.Cmd, con *console, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err != nil {
		started <- errors.Join(err, con.close())
		return
	}
	n.pid = cmd.Process.Pid
	con.run()
	started <- nil
	waitErr := cmd.Wait()
	n.exit = exitOf(cmd.ProcessState)
	var exitErr *exec.ExitError
	if errors.As(waitErr, &exitErr) {
		waitErr = nil
	}
	n.err = errors.Join(waitErr, con.close(), n.clean())
	close(n.done)
}

func exitOf(s *os.ProcessState) Exit {
	if s == nil {
		return Exit{Code: -1}
	}
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return Exit{Code: -1, Signal: ws.Signal()}
	}
	return Exit{Code: s.ExitCode()}
}

// order connects the network, tells the child what to do and waits until it
// has become init.
func (n *Node) order(ctx context.Context, con *console, w io.Writer, report *os.File) error {
	if err := n.attach(); err != nil {
		return err
	}
	o := order{
		Tree: n.cfg.Tree, StateDir: n.cfg.StateDir, Name: n.cfg.Name,
		Console: con.slave.Name(), Init: n.cfg.Init, Seed: n.cfg.Seed, Cgroups: n.cgroups,
	}
	if err := json.NewEncoder(w).Encode(o); err != nil {
		return fmt.Errorf("instruct the first process: %w", err)
	}
	deadline := time.Now().Add(startTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	stop := context.AfterFunc(ctx, func() { report.SetReadDeadline(time.Now()) })
	defer stop()
	if err := report.SetReadDeadline(deadline); err != nil {
		return err
	}
	problem, err := io.ReadAll(report)
	if err != nil {
		return fmt.Errorf("wait for the first process: %w", errors.Join(ctx.Err(), err))
	}
	if len(problem) > 0 {
		return errors.New(string(problem))
	}
	return nil
}

// cleanUp leaves mounts alone: they are gone with the namespaces.
func (n *Node) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(n.detach(), n.cgroups.remove(ctx), n.lock.Close())
}

// Link is the node's cable.
func (n *Node) Link() *Link { return n.cable }

// PID is the process id of the node's init on the build machine.
func (n *Node) PID() int { return n.pid }

// Wait waits until the node has ended and all its traces outside of StateDir
// are gone. The error is about cleaning up, or ctx's.
func (n *Node) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-n.done:
		return n.exit, n.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Stop asks the node to power off and waits until it has; when ctx ends first,
// it is killed.
func (n *Node) Stop(ctx context.Context) (Exit, error) {
	if err := n.signal(unix.SIGTERM); err != nil {
		return Exit{}, err
	}
	exit, err := n.Wait(ctx)
	if ctx.Err() != nil && err != nil {
		return exit, errors.Join(fmt.Errorf("node %s does not stop: %w", n.cfg.Name, ctx.Err()), n.Kill())
	}
	return exit, err
}

// Kill ends every process of the node at once, as a power cut does, and
// cleans up.
func (n *Node) Kill() error {
	if err := n.signal(unix.SIGKILL); err != nil {
		return err
	}
	// The signal is pending before the first of them can move again.
	if err := n.cgroups.thaw(); err != nil {
		return fmt.Errorf("kill node %s: %w", n.cfg.Name, err)
	}
	<-n.done
	return n.err
}

func (n *Node) signal(sig unix.Signal) error {
	select {
	case <-n.done:
		return nil
	default:
	}
	if err := unix.Kill(n.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal node %s: %w", n.cfg.Name, err)
	}
	return nil
}

// Command prepares a program of the node's root to run inside of all its
// namespaces, with the environment that init has.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := []string{"--target", strconv.Itoa(n.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, argv...)...)
	cmd.Env = initEnv()
	return cmd
}

// Exec runs a program inside the node and returns its standard output; the
// error holds what it wrote to standard error. When ctx ends, so does the
// program.
func (n *Node) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	cmd := n.Command(ctx, argv...)
	// The program is a child of nsenter, in the same group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		var exitErr *exec.ExitError
		if errors.As(err, &exitErr) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exitErr.Stderr)))
		}
		return out, fmt.Errorf("run %s in node %s: %w", strings.Join(argv, " "), n.cfg.Name, err)
	}
	return out, nil
}
