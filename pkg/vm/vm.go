// Package vm runs a disk image in QEMU as a PC with BIOS or UEFI: console,
// port forwards, a wire to other machines, power button, reset and a pulled
// plug. It uses KVM where a guest really runs with it, and says which it used.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Firmware is what the machine starts with.
type Firmware string

// The firmwares of a PC.
const (
	BIOS Firmware = "bios" // SeaBIOS
	UEFI Firmware = "uefi" // OVMF, without Secure Boot
)

// Config describes a machine.
type Config struct {
	Disk      string   // raw image; the guest writes to it unless Snapshot or ReadOnly
	Firmware  Firmware // empty means BIOS
	MemoryMiB int      // 0 means 2048
	CPUs      int      // 0 means 2
	// Forward maps TCP ports of the host's loopback address to the guest's.
	Forward map[int]int
	// Wire, unless it is nil, is what a second network card with the hardware
	// address MAC is plugged into.
	Wire *Wire
	MAC  string
	// Console receives everything that the first serial port says.
	Console io.Writer
	// Input is what is typed at the serial port; nil means nothing.
	Input io.Reader
	// Snapshot keeps the guest's writes out of Disk.
	Snapshot bool
	// ReadOnly makes the disk refuse writes.
	ReadOnly bool
	// NoReboot ends the machine where it would start again.
	NoReboot bool
	// Watchdog adds an i6300esb that resets the machine when it expires.
	Watchdog bool
	// Pace is that of the machine's clocks.
	Pace Pace
	// Args are added to QEMU's command line.
	Args []string
}

// Machine is a running QEMU. Its methods are safe for concurrent use.
type Machine struct {
	// KVM says that the machine runs on the host's processor; otherwise
	// instructions are translated, about twelve times slower.
	KVM bool
	// PowerOn is when QEMU was started.
	PowerOn time.Time

	cmd     *exec.Cmd
	dir     string // sockets and firmware variables
	console *console
	stderr  tail
	done    chan struct{}
	err     error // of QEMU's end; read after done is closed
}

// Start starts a machine. It ends when ctx does, or by Kill, Quit or the guest.
// The error of a QEMU that ends at once comes from Wait.
func Start(ctx context.Context, c Config) (_ *Machine, err error) {
	dir, err := os.MkdirTemp("", "cairn-vm-")
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	m := &Machine{KVM: KVM(ctx), dir: dir, console: newConsole(c.Console), done: make(chan struct{})}
	args, err := c.arguments(dir, m.KVM)
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	m.cmd = exec.CommandContext(ctx, program, args...)
	m.cmd.Stdin, m.cmd.Stdout, m.cmd.Stderr = c.Input, m.console, &m.stderr
	m.cmd.WaitDelay = 5 * time.Second // Input may never end
	if own := c.Pace.environment(); len(own) > 0 {
		m.cmd.Env = append(os.Environ(), own...)
	}
	if c.Wire != nil {
		end, err := c.Wire.plug()
		if err != nil {
			return nil, fmt.Errorf("start machine: %w", err)
		}
		defer end.Close() // QEMU has its copy
		m.cmd.ExtraFiles = []*os.File{end}
	}
	m.PowerOn = time.Now()
	m.console.start = m.PowerOn
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start machine: %w (install qemu-system-x86)", err)
	}
	go m.wait()
	return m, nil
}

func (m *Machine) wait() {
	err := m.cmd.Wait()
	if text := strings.TrimSpace(m.stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	m.err = errors.Join(err, os.RemoveAll(m.dir))
	m.console.close()
	close(m.done)
}

// Wait waits until the machine is off. Its error is QEMU's.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the machine's end: %w", context.Cause(ctx))
	}
}

// Kill pulls the plug: what the guest has not written is lost. It returns when
// QEMU is gone.
func (m *Machine) Kill() error {
	err := m.cmd.Process.Kill()
	<-m.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// PowerButton presses the ACPI power button.
func (m *Machine) PowerButton(ctx context.Context) error { return m.command(ctx, "system_powerdown") }

// CtrlAltDel presses these keys.
func (m *Machine) CtrlAltDel(ctx context.Context) error {
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	return m.commandWith(ctx, "send-key", map[string][]key{"keys": {{"qcode", "ctrl"}, {"qcode", "alt"}, {"qcode", "delete"}}})
}

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error { return m.command(ctx, "system_reset") }

// Pause stops the machine's processors; Resume lets them go on.
func (m *Machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume lets a paused machine go on.
func (m *Machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

// Quit ends QEMU in order, so that it flushes the disk image.
func (m *Machine) Quit(ctx context.Context) error {
	if err := m.command(ctx, "quit"); err != nil {
		return err
	}
	return m.Wait(ctx)
}

// arguments is QEMU's command line.
func (c Config) arguments(dir string, kvm bool) ([]string, error) {
	memory, cpus := c.MemoryMiB, c.CPUs
	if memory == 0 {
		memory = 2048
	}
	if cpus == 0 {
		cpus = 2
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-m", fmt.Sprint(memory), "-smp", fmt.Sprint(cpus),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		"-device", "virtio-rng-pci",
	}
	if kvm {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", emulatedCPU)
	}
	if c.Firmware == UEFI {
		firmware, err := uefi(dir)
		if err != nil {
			return nil, err
		}
		args = append(args, firmware...)
	}
	if c.Disk != "" {
		// writethrough: what the guest was told is written is in the
		// image, so killing QEMU is a fair power cut.
		drive := "if=none,id=disk,format=raw,cache=writethrough,file=" + strings.ReplaceAll(c.Disk, ",", ",,")
		if c.Snapshot {
			drive += ",snapshot=on"
		}
		if c.ReadOnly {
			drive += ",readonly=on"
		}
		args = append(args, "-drive", drive, "-device", "virtio-blk-pci,drive=disk,bootindex=1")
	}
	args = append(args, "-netdev", "user,id=net"+c.forwards(), "-device", "virtio-net-pci,netdev=net,romfile=")
	if c.Wire != nil {
		args = append(args, "-netdev", fmt.Sprintf("socket,id=wire,fd=%d", wireFD), "-device", "virtio-net-pci,netdev=wire,romfile=,mac="+c.MAC)
	}
	if c.Watchdog {
		args = append(args, "-device", "i6300esb", "-action", "watchdog=reset")
	}
	if c.NoReboot {
		args = append(args, "-no-reboot")
	}
	args = append(args, c.Pace.arguments()...)
	return append(args, c.Args...), nil
}

func (c Config) forwards() string {
	var rules []string
	for host, guest := range c.Forward {
		rules = append(rules, fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest))
	}
	slices.Sort(rules)
	return strings.Join(rules, "")
}

// tail keeps the last of what QEMU says about itself.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 4096; over > 0 {
		t.buf = bytes.Clone(t.buf[over:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
