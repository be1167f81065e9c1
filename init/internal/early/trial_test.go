package early

import (
	"bytes"
	"errors"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-os/cairn/init/internal/emergency"
	"github.com/cairn-os/cairn/init/internal/entry"
	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/slot"
	"golang.org/x/sys/unix"
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
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a mount name space: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("in a mount name space:\n%s", out)
	}
	return false
}

// image makes a disk with the state on it. It is ext2: not every machine that builds has vfat in its kernel.
func image(t *testing.T, s slot.State) (file, device string) {
	t.Helper()
	content := t.TempDir()
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(content, "cairn"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(content, sysfile.State1), data, 0o644); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext2", "-d", content, file, "2M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v\n%s", err, out)
		}
	})
	return file, device
}

// TestOnDisk mounts a real file system for each use: a trial's report gets there, and nothing stays mounted; where
// nothing is on trial not a byte changes.
func TestOnDisk(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	armed, err := slot.New(slot.A).Arm(slot.B, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, running := range []slot.Slot{slot.A, slot.B} {
		file, device := image(t, armed)
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := mount.Mount{Source: device, Target: filepath.Join(t.TempDir(), "sys"), Type: "ext2", Flags: unix.MS_RDONLY | unix.MS_NODEV}
		s := &stage{log: log.New(os.Stderr, "", 0), entry: entry.Entry{Slot: string(running)}}
		if err := s.begin(onDisk(m)); err != nil {
			t.Fatal(err)
		}
		err = s.failed(&sequence.Error{Phase: "verity", Err: errors.New("damaged")})
		if table, err := mount.Table(); err != nil || strings.Contains(table[len(table)-1].Target, m.Target) {
			t.Errorf("%v, %v: still mounted", table[len(table)-1], err)
		}
		if running == slot.A {
			if onTrial := (emergency.OnTrial{}); s.trial != nil || errors.As(err, &onTrial) {
				t.Errorf("slot a is on trial: %v", err)
			}
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
				t.Errorf("a boot of a confirmed slot wrote to CAIRN_SYS (%v)", err)
			}
			continue
		}
		if onTrial := (emergency.OnTrial{}); !errors.As(err, &onTrial) || onTrial.TriesLeft != 3 {
			t.Errorf("failed() = %#v; want the failure of a trial", err)
		}
		if err := m.Apply("/"); err != nil {
			t.Fatal(err)
		}
		report, err := os.ReadFile(filepath.Join(m.Target, sysfile.Trial))
		if err := errors.Join(err, unix.Unmount(m.Target, 0)); err != nil {
			t.Fatal(err)
		}
		if r, err := slot.DecodeReport(report); err != nil || r.Stage != slot.StageEarly || r.Phase != "verity" || r.Error != "damaged" || !r.Last(armed) {
			t.Errorf("report %+v, %v; want the failed phase", r, err)
		}
	}
}

// TestNoDisk: a boot selector's partition that cannot be mounted stops nothing.
func TestNoDisk(t *testing.T) {
	s := &stage{log: log.New(os.Stderr, "", 0), entry: entry.Entry{Slot: "b"}}
	if err := s.beginTrial(t.Context()); err == nil || s.trial != nil {
		t.Errorf("beginTrial() without a partition = %v; want an error to report", err)
	}
	err := s.begin(onDisk(mount.Mount{Source: "/dev/none", Target: filepath.Join(t.TempDir(), "sys"), Type: "vfat"}))
	if err == nil || s.trial != nil {
		t.Errorf("begin() without a disk = %v; want an error to report", err)
	}
	failed := errors.New("x")
	if err := s.failed(failed); err != failed {
		t.Errorf("failed() = %v; want the failure as it is", err)
	}
}
