package system

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
)

func TestSetFileLimits(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	// A hard limit that needs no privilege here.
	if err := setFileLimits(513, 600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "ulimit -Sn; ulimit -Hn").Output()
	if want := fmt.Sprintf("513\n%d\n", max(before.Max, 600)); err != nil || string(out) != want {
		t.Errorf("a child has limits %q, %v; want %q", out, err, want)
	}
}
