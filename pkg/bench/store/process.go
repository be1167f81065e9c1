package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/build/child"
)

// process is a running store.
type process struct {
	cmd   *exec.Cmd
	log   *tail
	ended chan struct{} // closed when it has ended
	err   error         // of its end; valid after ended
}

// startProcess starts argv with env added to the environment. It is killed
// when ctx ends.
func startProcess(ctx context.Context, argv, env []string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), log: &tail{}, ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	// Through a pipe: what it logs is not among the bytes that it writes to
	// disk, as under a supervisor.
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	child.Bind(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends it as a power cut would, and waits.
func (p *process) kill() error {
	if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	<-p.ended
	return nil
}

// stop ends it in order, and waits.
func (p *process) stop(ctx context.Context) error {
	if err := unix.Kill(p.pid(), unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop %s: %w", p.cmd.Path, ctx.Err()), p.kill())
	}
}

// failure describes the end of a process that should run, or returns nil.
func (p *process) failure() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %v; the last it said:\n%s", p.cmd.Path, p.err, p.log)
	default:
		return nil
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 4096; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// memory is what a process has resident, in bytes, by proc_pid_status(5).
type memory struct {
	anonymous int64 // RssAnon: its own
	resident  int64 // VmRSS: with files that are mapped, such as programs and etcd's database
}

func (p *process) memory() (memory, error) {
	proc, err := p.proc()
	if err != nil {
		return memory{}, err
	}
	status, err := proc.NewStatus()
	if err != nil {
		return memory{}, errors.Join(err, p.failure())
	}
	return memory{int64(status.RssAnon), int64(status.VmRSS)}, nil
}

// written is how many bytes the process has caused to be sent to disks:
// write_bytes of proc_pid_io(5), which leaves out what was given up again
// before it was sent, and what sockets and pipes took.
func (p *process) written() (int64, error) {
	proc, err := p.proc()
	if err != nil {
		return 0, err
	}
	io, err := proc.IO()
	if err != nil {
		return 0, errors.Join(err, p.failure())
	}
	return int64(io.WriteBytes) - io.CancelledWriteBytes, nil
}

// cpu is the processor time that the process has used.
func (p *process) cpu() (time.Duration, error) {
	proc, err := p.proc()
	if err != nil {
		return 0, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return 0, errors.Join(err, p.failure())
	}
	return time.Duration(stat.CPUTime() * float64(time.Second)), nil
}

func (p *process) proc() (procfs.Proc, error) {
	proc, err := procfs.NewProc(p.pid())
	if err != nil {
		return proc, errors.Join(err, p.failure())
	}
	return proc, nil
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
