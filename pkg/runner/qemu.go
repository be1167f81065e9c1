package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/vm"
)

// VMOptions describe a machine in QEMU.
type VMOptions struct {
	Name      string
	Dir       string // where its disk and SSH key are kept
	DiskSize  int64  // bytes; the image is grown to it, as on a larger card
	Firmware  vm.Firmware
	MemoryMiB int
	Console   io.Writer
	Input     io.Reader // typed at its console; may be nil
	Config    []byte    // a cloud-config to merge over the demonstration's; may be nil
	// Ports of 127.0.0.1 that lead to the machine; 0 takes a free one.
	APIPort, SSHPort, PagePort int
	// Watchdog gives the machine a hardware watchdog.
	Watchdog bool
	// Wire, unless it is nil, joins the machine with others by a second network
	// card that has Address, such as 10.89.0.11/24.
	Wire    *vm.Wire
	Address netip.Prefix
	Pace    vm.Pace // of its clocks
}

// VM is a machine in QEMU. Its disk stays between Start and Start.
type VM struct {
	o       VMOptions
	disk    string
	shell   *Shell
	machine *vm.Machine
	console *Console
	done    chan struct{}
}

// NewVM makes the disk of a machine: a copy of the image, grown, with a seed
// that holds its configuration and the demonstration's image.
func NewVM(built *image.Output, o VMOptions) (*VM, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	authorized, err := newKey(keyFile(o))
	if err != nil {
		return nil, err
	}
	m, err := OpenVM(built, o)
	if err != nil {
		return nil, err
	}
	if err := disk.Copy(built.Disk, m.disk); err != nil {
		return nil, err
	}
	if err := os.Truncate(m.disk, o.DiskSize); err != nil {
		return nil, err
	}
	hello, err := os.ReadFile(built.Hello)
	if err != nil {
		return nil, err
	}
	seed, err := seedConfig(o.Name, authorized, o.network(), o.Config)
	if err != nil {
		return nil, err
	}
	return m, disk.Seed(m.disk, map[string][]byte{"config.yaml": seed, "images/hello.tar": hello})
}

// OpenVM returns the machine whose disk an earlier NewVM made in o.Dir.
func OpenVM(_ *image.Output, o VMOptions) (*VM, error) {
	for _, port := range []*int{&o.APIPort, &o.SSHPort, &o.PagePort} {
		if *port == 0 {
			free, err := freePort()
			if err != nil {
				return nil, err
			}
			*port = free
		}
	}
	signer, err := readKey(keyFile(o))
	if err != nil {
		return nil, err
	}
	return &VM{
		o: o, disk: filepath.Join(o.Dir, "disk.img"),
		shell: &Shell{addr: fmt.Sprintf("127.0.0.1:%d", o.SSHPort), signer: signer},
	}, nil
}

// network is the network's configuration; nil asks for DHCP at the only card.
func (o VMOptions) network() *config.Network {
	if o.Wire == nil {
		return nil
	}
	return &config.Network{Interfaces: map[string]config.Interface{
		"eth0": {DHCP: true}, // QEMU's own network: the way to this machine and out
		"wire": {MAC: o.mac(), Addresses: []string{o.Address.String()}},
	}}
}

// mac is the hardware address of the card at the wire: QEMU's prefix, and what tells apart the addresses of one wire.
func (o VMOptions) mac() string {
	if o.Wire == nil {
		return ""
	}
	ip := o.Address.Addr().As4()
	return net.HardwareAddr{0x52, 0x54, 0, ip[1], ip[2], ip[3]}.String()
}

func keyFile(o VMOptions) string { return filepath.Join(o.Dir, "ssh_key") }

// Disk is the path of the machine's disk.
func (m *VM) Disk() string { return m.disk }

// Start powers the machine on. It must be off.
func (m *VM) Start(ctx context.Context) error {
	m.console, m.done = NewConsole(m.o.Console), make(chan struct{})
	machine, err := vm.Start(ctx, vm.Config{
		Disk: m.disk, Firmware: m.o.Firmware, MemoryMiB: m.o.MemoryMiB, Console: m.console, Input: m.o.Input, Watchdog: m.o.Watchdog,
		Forward: map[int]int{m.o.APIPort: 6443, m.o.SSHPort: 22, m.o.PagePort: HelloPort}, Wire: m.o.Wire, MAC: m.o.mac(),
		Pace: m.o.Pace,
	})
	if err != nil {
		return err
	}
	m.machine = machine
	go func(console *Console, done chan struct{}) {
		defer close(done)
		if err := machine.Wait(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintf(console, "%s: QEMU: %v\n", m.o.Name, err)
		}
	}(m.console, m.done)
	return nil
}

// Name implements Machine, as do the methods below.
func (m *VM) Name() string { return m.o.Name }

func (m *VM) PowerOn() time.Time    { return m.machine.PowerOn }
func (m *VM) Console() *Console     { return m.console }
func (m *VM) Done() <-chan struct{} { return m.done }
func (m *VM) API() string           { return fmt.Sprintf("https://127.0.0.1:%d", m.o.APIPort) }
func (m *VM) Page() string          { return fmt.Sprintf("http://127.0.0.1:%d/", m.o.PagePort) }

// Kill pulls the plug and waits until QEMU is gone.
func (m *VM) Kill() error {
	if err := m.machine.Kill(); err != nil {
		return err
	}
	<-m.done
	return nil
}

// Stop presses the power button and waits until the machine is off. When ctx
// ends first the plug is pulled, and that is an error.
func (m *VM) Stop(ctx context.Context) error {
	if err := m.machine.PowerButton(ctx); err != nil {
		return errors.Join(err, m.Kill())
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s does not power off: %w; its console's end:\n%s", m.o.Name, ctx.Err(), m.console.Tail(25)), m.Kill())
	}
}

func (m *VM) Run(ctx context.Context, line string) (string, error) { return m.shell.Run(ctx, line) }

// PowerButton presses the machine's power button.
func (m *VM) PowerButton(ctx context.Context) error { return m.machine.PowerButton(ctx) }

// CtrlAltDel presses these keys on the machine's keyboard.
func (m *VM) CtrlAltDel(ctx context.Context) error { return m.machine.CtrlAltDel(ctx) }

// Emulated says how the machine's processor comes about.
func (m *VM) Emulated() string {
	if m.machine.KVM {
		return "KVM"
	}
	return "software emulation: /dev/kvm runs no guest here"
}

// freePort returns a TCP port of 127.0.0.1 that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("listener has address %v", l.Addr())
	}
	return addr.Port, nil
}
