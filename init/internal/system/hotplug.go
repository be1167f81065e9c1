package system

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/module"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/uevent"
	"golang.org/x/sys/unix"
)

// hotplug loads the drivers of the devices that are there and, from then on, of those that come; it also listens to
// power buttons and to dm-verity's complaints.
func (m *machine) hotplug(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // not the phase's, which ends with the phase: devices come and go until the end
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	loader, err := module.Open("/", unix.ByteSliceToString(u.Release[:]))
	if err != nil && !errors.Is(err, module.ErrNoModules) {
		return err
	}
	m.modules = loader
	// Listen first, scan then: nothing falls between.
	listener, err := uevent.Listen()
	if err != nil {
		return errors.Join(err, m.coldplug())
	}
	m.background("hotplug", func() error {
		told := map[string]bool{} // a block that is asked for again and again is told of once
		err := listener.Run(ctx, func(e uevent.Event) {
			m.handle(ctx, e)
			if text := corruption(e); text != "" && !told[text] {
				told[text] = true
				m.log.Print(text)
			}
		}, func(err error) {
			m.log.Printf("hotplug: %v", err)
			if errors.Is(err, uevent.ErrOverrun) {
				m.background("hotplug", m.coldplug)
			}
		})
		return err
	})
	inputs, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		return err
	}
	for _, path := range inputs {
		m.watchButton(ctx, path)
	}
	return m.coldplug()
}

func (m *machine) coldplug() error {
	if m.modules == nil {
		return nil
	}
	return m.modules.Coldplug("/sys")
}

// handle acts on one event. It is called from one goroutine and must not take long: loading a module is not awaited.
func (m *machine) handle(ctx context.Context, e uevent.Event) {
	if alias := e.Env["MODALIAS"]; e.Action == "add" && alias != "" && m.modules != nil {
		m.background("hotplug", func() error { return m.modules.LoadAlias(alias) })
	}
	if name := e.Env["DEVNAME"]; e.Action == "add" && strings.HasPrefix(name, "input/event") {
		m.watchButton(ctx, "/dev/"+name)
	}
}

// corruption is what the console says when dm-verity refused a block.
func corruption(e uevent.Event) string {
	where, ok := e.Env["DM_VERITY_ERR_BLOCK_NR"] // "0,4711": type and number
	if !ok {
		return ""
	}
	kind, block, _ := strings.Cut(where, ",")
	what := "block " + block
	if kind != "0" {
		what = "hash block " + block
	}
	return "THE ROOT FILE SYSTEM IS CORRUPTED: dm-verity refused " + what + "; what needs it fails. Flash the image again or update, and check the card or disk."
}

// watchButton asks for an orderly power-off when the device's power button is pressed.
func (m *machine) watchButton(ctx context.Context, path string) {
	m.background("power button", func() error {
		err := power.WatchButton(ctx, path, func() {
			m.log.Print("the power button was pressed")
			m.request(power.PowerOff)
		})
		if errors.Is(err, power.ErrNoButton) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil // another kind of input, or unplugged
		}
		return err
	})
}
