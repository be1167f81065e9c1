package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestString(t *testing.T) {
	tests := []struct {
		m    Mount
		want string
	}{
		{Mount{Source: "proc", Target: "/proc", Type: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
			"proc /proc proc nosuid,nodev,noexec"},
		{Mount{Source: "/var/home", Target: "/home", Flags: unix.MS_BIND}, "/var/home /home none bind"},
		{Mount{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"}, "devtmpfs /dev devtmpfs defaults"},
		{Mount{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "mode=1777"},
			"tmpfs /tmp tmpfs nosuid,mode=1777"},
	}
	for _, tt := range tests {
		if got := tt.m.String(); got != tt.want {
			t.Errorf("String() = %q; want %q", got, tt.want)
		}
	}
}

const sample = `1 1 254:0 / / ro,relatime - erofs /dev/dm-0 ro
20 1 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw
21 20 0:21 / /dev/pts rw - devpts devpts rw
22 1 0:22 / /proc rw - proc proc rw
23 1 0:23 / /run rw - tmpfs tmpfs rw
24 1 259:6 / /var rw,noatime shared:7 - ext4 /dev/vda6 rw,errors=remount-ro
25 1 259:6 /home /home rw,noatime - ext4 /dev/vda6 rw
26 24 0:40 / /var/lib/kubelet/pods/a\040b/volumes rw - tmpfs tmpfs rw
27 23 259:1 / /run/cairn/sys ro - vfat /dev/vda1 ro
28 1 0:41 / /etc rw - overlay overlay rw,lowerdir=/etc,upperdir=/run/u
`

func TestUnmountOrder(t *testing.T) {
	table, err := ParseTable(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc", "/run/cairn/sys", "/var/lib/kubelet/pods/a b/volumes", "/home", "/var"}
	if diff := cmp.Diff(want, UnmountOrder(table)); diff != "" {
		t.Errorf("UnmountOrder (-want +got):\n%s", diff)
	}
}

func TestParseTableRefuses(t *testing.T) {
	for _, line := range []string{"x", "1 2 3", "a b 0:1 / / rw - ext4 x rw", "1 2 0:1 / / rw - ext4"} {
		if got, err := ParseTable(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("ParseTable(%q) = %v; want an error", line, got)
		}
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(sample)
	f.Fuzz(func(t *testing.T, s string) {
		table, err := ParseTable(strings.NewReader(s))
		if err == nil {
			UnmountOrder(table)
		}
	})
}

// TestApply mounts for real, in a mount name space of its own.
func TestApply(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	root := t.TempDir()
	t.Cleanup(func() {
		for _, dir := range []string{"a", "b"} {
			if err := unix.Unmount(filepath.Join(root, dir), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	mounts := []Mount{
		{Source: "tmpfs", Target: "/a", Type: "tmpfs", Data: "mode=0700"},
		{Source: filepath.Join(root, "a"), Target: "/b", Flags: unix.MS_BIND},
		{Source: "none", Target: "/c", Type: "nosuchfs", Optional: true},
	}
	for range 2 { // the second time the tmpfs must be left alone
		if err := ApplyAll(root, mounts); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "a/file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "b/file")); err != nil {
		t.Errorf("the bind mount does not show the file: %v", err)
	}
	table, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range table {
		if e.Target == filepath.Join(root, "a") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s is mounted %d times; want once", filepath.Join(root, "a"), n)
	}
	bad := Mount{Source: "none", Target: "/d", Type: "nosuchfs"}
	if err := bad.Apply(root); err == nil {
		t.Error("mounting an unknown file system succeeded")
	}
	if ram, err := IsRAM(filepath.Join(root, "a")); err != nil || !ram {
		t.Errorf("IsRAM(tmpfs) = %v, %v; want true", ram, err)
	}
	if ram, err := IsRAM("/proc"); err != nil || ram {
		t.Errorf("IsRAM(/proc) = %v, %v; want false", ram, err)
	}
}

func TestServed(t *testing.T) {
	for kind, want := range map[string]bool{"nfs4": true, "cifs": true, "fuse": true, "fuse.sshfs": true, "ext4": false, "overlay": false, "fusectl": false} {
		if got := served(kind); got != want {
			t.Errorf("served(%s) = %v; want %v", kind, got, want)
		}
	}
}

// TestDetach takes a busy mount off the tree.
func TestDetach(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	target := t.TempDir()
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Create(filepath.Join(target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	var said strings.Builder
	logf := func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
	detach(target, logf)
	if mountedAs(target, "tmpfs") || said.Len() > 0 {
		t.Errorf("%s is still mounted; said %q", target, said.String())
	}
	if detach(target, logf); said.Len() > 0 { // not a mount any more
		t.Errorf("said %q", said.String())
	}
}
