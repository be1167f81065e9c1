// Package bootlog carries the log and the timeline of a boot through init's two stages.
package bootlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/kmsg"
	"github.com/cairn-os/cairn/pkg/status"
	"golang.org/x/sys/unix"
)

// path is on the /run that early init makes and system init inherits.
const path = "run/cairn/early.json"

// ToKernel sends the log package's lines to the kernel log, from where they reach every console. Where there is none
// (a container) they go to standard error.
func ToKernel() *log.Logger {
	logger := log.Default()
	logger.SetFlags(0)
	f, err := kmsg.Open()
	if err != nil {
		return ToStderr()
	}
	logger.SetPrefix("")
	logger.SetOutput(kmsg.NewWriter(f, kmsg.Info, "cairn: "))
	return logger
}

// ToStderr sends the log package's lines to standard error: a container has no kernel log of its own.
func ToStderr() *log.Logger {
	logger := log.Default()
	logger.SetFlags(0)
	logger.SetPrefix("cairn: ")
	logger.SetOutput(os.Stderr)
	return logger
}

// SincePowerOn is the time since the kernel started, which is as near to power-on as the kernel knows.
func SincePowerOn() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Save leaves the early stage's phases below root for the system stage.
func Save(root string, phases []status.Phase) error {
	data, err := json.Marshal(phases)
	if err != nil {
		return fmt.Errorf("save early phases: %w", err)
	}
	file := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("save early phases: %w", err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("save early phases: %w", err)
	}
	return nil
}

// Load returns what Save left; nothing when there was no early stage.
func Load(root string) ([]status.Phase, error) {
	data, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load early phases: %w", err)
	}
	var phases []status.Phase
	if err := json.Unmarshal(data, &phases); err != nil {
		return nil, fmt.Errorf("load early phases: %w", err)
	}
	return phases, nil
}
