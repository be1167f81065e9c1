package containerd

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestStopBeforeServing runs containerd in a process of its own, as what it registers is global, and asks it to stop
// before it serves: that is no failure.
func TestStopBeforeServing(t *testing.T) {
	const variable = "CONTAINERD_TEST_DIR"
	if dir := os.Getenv(variable); dir != "" {
		o := DefaultOptions()
		o.Root, o.State, o.Socket = filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "run", "sock")
		o.ConfigFile, o.CNIConfDir, o.ShimCgroup = filepath.Join(dir, "config.toml"), filepath.Join(dir, "net.d"), ""
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Run(ctx, slog.New(slog.DiscardHandler), o, func() error { return nil }); err != nil {
			t.Errorf("Run, asked to stop before it serves: %v; want no error", err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestStopBeforeServing$")
	cmd.Env = append(os.Environ(), variable+"="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
