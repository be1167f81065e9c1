package nodes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnavailable says that this machine or user cannot have such nodes; the
// error that wraps it says why. Tests skip on it.
var ErrUnavailable = errors.New("nodes of their own network, disk and clock cannot run here")

// Available returns nil where nodes can run, or an error that wraps
// ErrUnavailable.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: not root", ErrUnavailable)
	}
	for _, program := range []string{"nsenter", "nft", "mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	if loops, _ := filepath.Glob("/dev/loop*"); len(loops) == 0 {
		return fmt.Errorf("%w: no loop devices", ErrUnavailable)
	}
	return nil
}

// Set is a number of nodes on one network.
type Set struct {
	Nodes []*Node

	network *network
}

// Node is a machine with one process. Its methods are safe for concurrent use.
type Node struct {
	Index   int
	Address netip.Addr
	Dir     string // its own file system

	set  *Set
	disk *disk
	log  io.Writer

	mu      sync.Mutex
	argv    []string
	env     []string
	process *process // nil: none was started, or it was killed
	shift   time.Duration
	exits   []string // how processes ended that nobody had killed
}

// process is one life of a node's program.
type process struct {
	cmd     *exec.Cmd
	clock   *clock
	noClock error         // why there is no clock
	ended   chan struct{} // closed after its end
}

// New makes count nodes with file systems of size bytes below dir. What the
// programs of node i write goes to log(i).
func New(ctx context.Context, dir string, count int, size int64, log func(i int) io.Writer) (*Set, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	network, err := newNetwork(count)
	if err != nil {
		return nil, err
	}
	s := &Set{network: network}
	for i := range count {
		d, err := newDisk(ctx, filepath.Join(dir, fmt.Sprintf("node%d", i)), size)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.Nodes = append(s.Nodes, &Node{Index: i, Address: address(i), Dir: d.dir, set: s, disk: d, log: log(i)})
	}
	return s, nil
}

// Close kills what runs and removes everything.
func (s *Set) Close() error {
	var errs []error
	for _, n := range s.Nodes {
		n.Kill()
		errs = append(errs, n.disk.close())
	}
	s.network.close()
	return errors.Join(errs...)
}

// Lose makes the network lose exactly these packets from now on.
func (s *Set) Lose(ctx context.Context, losses []Loss) error { return s.network.lose(ctx, losses) }

// SetProgram says what Start runs.
func (n *Node) SetProgram(argv, env []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.argv, n.env = argv, env
}

// Start starts the node's program unless it runs.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		return nil
	}
	// nsenter turns into the program: the process is the program's own.
	cmd := exec.Command("nsenter", append([]string{"--net=" + path(n.set.network.spokes[n.Index]), "--"}, n.argv...)...)
	cmd.Env = append(os.Environ(), n.env...)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go n.watch(p, started)
	if err := <-started; err != nil {
		return fmt.Errorf("start node %d: %w", n.Index, err)
	}
	n.process = p
	c, err := n.prepareClock(ctx, p)
	if err != nil && !errors.Is(err, ErrClock) && !gone(err) {
		return fmt.Errorf("start node %d: clock: %w", n.Index, err)
	}
	p.clock, p.noClock = c, err
	return nil
}

// gone reports the error of asking for a process that has ended, which watch
// tells of.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, os.ErrProcessDone)
}

// watch runs a process from its start to its end on one thread: the signal
// that ends it with this program is bound to the thread that forked. It notes
// an end that nobody caused.
func (n *Node) watch(p *process, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	err = p.cmd.Wait()
	close(p.ended)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != p {
		return
	}
	n.process = nil
	if err == nil {
		n.exits = append(n.exits, "ended")
	} else {
		n.exits = append(n.exits, err.Error())
	}
}

// prepareClock waits until nsenter has become the program, and patches that.
func (n *Node) prepareClock(ctx context.Context, p *process) (*clock, error) {
	pid := p.cmd.Process.Pid
	for {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			return nil, err
		}
		if exe != p.cmd.Path && !strings.HasSuffix(exe, "/nsenter") && exe != "/proc/self/exe" {
			break
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return nil, err
		}
	}
	c, err := newClock(ctx, pid)
	if err != nil || n.shift == 0 {
		return c, err
	}
	return c, c.set(n.shift)
}

// Kill ends the node's process at once, if it runs, and waits for its end.
func (n *Node) Kill() { n.end(unix.SIGKILL, 0) }

// Stop asks the process to end and kills it if it has not after patience.
func (n *Node) Stop(patience time.Duration) { n.end(unix.SIGTERM, patience) }

func (n *Node) end(sig unix.Signal, patience time.Duration) {
	n.mu.Lock()
	p := n.process
	n.process = nil
	n.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-p.ended:
		case <-timer.C:
			_ = p.cmd.Process.Kill()
		}
	}
	<-p.ended
}

// Pause stops the process where it stands, and Resume lets it go on.
func (n *Node) Pause() error { return n.signal(unix.SIGSTOP) }

// Resume undoes Pause.
func (n *Node) Resume() error { return n.signal(unix.SIGCONT) }

func (n *Node) signal(sig unix.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil
	}
	if err := n.process.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("node %d: %s: %w", n.Index, sig, err)
	}
	return nil
}

// SetClock makes the node's time of day differ from the machine's by d, in
// whole seconds, for this and later processes.
func (n *Node) SetClock(d time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shift = d
	if n.process == nil {
		return nil
	}
	if n.process.clock == nil {
		return fmt.Errorf("%w: %w", ErrClock, n.process.noClock)
	}
	if err := n.process.clock.set(d); !gone(err) {
		return err
	}
	return nil
}

// Fill takes all space of the node's disk, and Free gives it back.
func (n *Node) Fill() error { return n.disk.fill() }

// Free undoes Fill.
func (n *Node) Free() error { return n.disk.free() }

// Throttle slows what the node sends to 128 KiB/s with a queue of 300 ms.
func (n *Node) Throttle(on bool) error { return n.set.network.throttle(n.Index, on) }

// Running says whether the node's process has been started and not ended.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process != nil
}

// Exits tells how processes ended that nobody had killed.
func (n *Node) Exits() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.exits...)
}
