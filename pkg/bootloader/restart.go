package bootloader

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Restart is how a machine must be restarted.
type Restart struct {
	// Argument is handed to the firmware by reboot(2) with
	// LINUX_REBOOT_CMD_RESTART2; "" for an ordinary restart. It is what
	// reboot(8) takes as its argument.
	Argument string
}

// Do restarts the machine at once, without a sync, and does not return when it
// worked.
func (r Restart) Do() error {
	if r.Argument == "" {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		return nil
	}
	text, err := unix.BytePtrFromString(r.Argument)
	if err != nil {
		return fmt.Errorf("restart with %q: %w", r.Argument, err)
	}
	// unix.Reboot has no place for the argument.
	_, _, errno := unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2,
		unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(text)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("restart with %q: %w", r.Argument, errno)
	}
	return nil
}
