// Package power ends the machine's run, and hears the buttons that ask for it.
package power

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Action is a way in which a node stops.
type Action int

// The actions. None is the zero value.
const (
	None Action = iota
	Reboot
	PowerOff
)

var names = [...]string{"none", "reboot", "poweroff"}

// String is the name of the command that asks for the action.
func (a Action) String() string {
	if a < 0 || int(a) >= len(names) {
		return fmt.Sprintf("action %d", int(a))
	}
	return names[a]
}

// Parse is the inverse of String for real actions.
func Parse(name string) (Action, error) {
	for a, n := range names {
		if n == name && Action(a) != None {
			return Action(a), nil
		}
	}
	return None, fmt.Errorf("%q is neither reboot nor poweroff", name)
}

// Do performs the action at once, without a sync, and does not return when it worked.
func (a Action) Do() error {
	var cmd int
	switch a {
	case Reboot:
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	case PowerOff:
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	default:
		return fmt.Errorf("power: nothing to do for %v", a)
	}
	if err := unix.Reboot(cmd); err != nil {
		return fmt.Errorf("%v: %w", a, err)
	}
	return nil
}

// CtrlAltDelAsSignal makes the three keys send SIGINT to PID 1 in place of a reset without a sync.
func CtrlAltDelAsSignal() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("take over ctrl-alt-del: %w", err)
	}
	return nil
}
