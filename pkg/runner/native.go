package runner

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/nodens"
)

// NativeOptions describe a machine in namespaces.
type NativeOptions struct {
	Name    string
	Address netip.Prefix // such as 10.88.0.2/24
	// Address6 is the same for IPv6, such as fd00:88::2/64; the zero value is a machine without.
	Address6 netip.Prefix
	State    string // directory that keeps its /var
	Console  io.Writer
	Input    io.Reader // typed at its console; may be nil
	Config   []byte    // a cloud-config to merge over the demonstration's; may be nil
}

// Native is a machine in namespaces of this one.
type Native struct {
	node    *nodens.Node
	o       NativeOptions
	console *Console
	powerOn time.Time
	done    chan struct{}
}

// StartNative starts the built root tree as a machine in namespaces.
func StartNative(ctx context.Context, built *image.Output, o NativeOptions) (*Native, error) {
	hello, err := os.ReadFile(built.Hello)
	if err != nil {
		return nil, err
	}
	state, err := filepath.Abs(o.State)
	if err != nil {
		return nil, err
	}
	seed, err := seedConfig(o.Name, "", &config.Network{Interfaces: map[string]config.Interface{"eth0": o.card()}}, o.Config)
	if err != nil {
		return nil, err
	}
	m := &Native{o: o, console: NewConsole(o.Console), powerOn: time.Now(), done: make(chan struct{})}
	m.node, err = nodens.Start(ctx, nodens.Config{
		Tree: built.Tree, StateDir: state, Name: o.Name, Address: o.Address, Address6: o.Address6,
		Console: m.console, ConsoleIn: o.Input,
		Seed: map[string][]byte{
			"/var/lib/cairn/config.yaml":      seed,
			"/var/lib/cairn/images/hello.tar": hello,
		},
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(m.done)
		exit, err := m.node.Wait(context.WithoutCancel(ctx))
		fmt.Fprintf(m.console, "%s ended: code %d %v\n", o.Name, exit.Code, err)
	}()
	return m, nil
}

// card is the network card's configuration. The bridge has the first address of each network.
func (o NativeOptions) card() config.Interface {
	c := config.Interface{Addresses: []string{o.Address.String()}, Gateway: o.Address.Masked().Addr().Next().String()}
	if o.Address6.IsValid() {
		c.Addresses = append(c.Addresses, o.Address6.String())
		c.Routes = []config.Route{{To: "::/0", Via: o.Address6.Masked().Addr().Next().String()}}
	}
	return c
}

// Stop asks the machine to power off and waits until it has.
func (m *Native) Stop(ctx context.Context) error {
	exit, err := m.node.Stop(ctx)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s powered off with code %d, signal %v", m.o.Name, exit.Code, exit.Signal)
	}
	return err
}

// Run implements Machine, as do the methods below.
func (m *Native) Run(ctx context.Context, line string) (string, error) {
	out, err := m.node.Exec(ctx, "/bin/sh", "-c", line)
	return string(out), err
}

// PID is the process id of the machine's init as this machine counts.
func (m *Native) PID() int { return m.node.PID() }

func (m *Native) Name() string          { return m.o.Name }
func (m *Native) PowerOn() time.Time    { return m.powerOn }
func (m *Native) Console() *Console     { return m.console }
func (m *Native) Done() <-chan struct{} { return m.done }
func (m *Native) Kill() error           { return m.node.Kill() }
func (m *Native) API() string           { return fmt.Sprintf("https://%s:6443", m.o.Address.Addr()) }
func (m *Native) Page() string {
	return fmt.Sprintf("http://%s:%d/", m.o.Address.Addr(), HelloPort)
}
