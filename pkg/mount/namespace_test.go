package mount

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inNamespace reports whether the test runs in a mount name space of its own; the outer run starts that one and ends.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("CAIRN_TEST_NAMESPACE") == "1" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount name space")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a mount name space: %v\n%s", err, out)
	}
	return false
}
