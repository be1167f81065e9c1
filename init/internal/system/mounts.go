package system

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/mount"
	"golang.org/x/sys/unix"
)

const (
	noSuid = unix.MS_NOSUID
	noDev  = unix.MS_NODEV
	noExec = unix.MS_NOEXEC
)

// pseudoFileSystems are the kernel's file systems. The first four came along from the initramfs.
func pseudoFileSystems() []mount.Mount {
	return []mount.Mount{
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: noSuid, Data: "mode=0755"},
		{Source: "proc", Target: "/proc", Type: "proc", Flags: noSuid | noDev | noExec},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: noSuid | noDev | noExec},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: noSuid | noDev, Data: "mode=0755"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: noSuid | noExec, Data: "gid=5,mode=0620,ptmxmode=0666"},
		{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: noSuid | noDev, Data: "mode=1777"},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: noSuid | noDev | noExec, Optional: true},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: noSuid | noDev, Data: "mode=1777,size=25%"},
		{Source: "tmpfs", Target: "/root", Type: "tmpfs", Flags: noSuid | noDev, Data: "mode=0700,size=16m"},
		{Source: "cgroup2", Target: "/sys/fs/cgroup", Type: "cgroup2", Flags: noSuid | noDev | noExec, Data: "nsdelegate,memory_recursiveprot", NoCreate: true},
		{Source: "bpf", Target: "/sys/fs/bpf", Type: "bpf", Flags: noSuid | noDev | noExec, Data: "mode=0700", Optional: true, NoCreate: true},
		{Source: "securityfs", Target: "/sys/kernel/security", Type: "securityfs", Flags: noSuid | noDev | noExec, Optional: true, NoCreate: true},
		{Source: "pstore", Target: "/sys/fs/pstore", Type: "pstore", Flags: noSuid | noDev | noExec, Optional: true, NoCreate: true},
		{Source: "efivarfs", Target: "/sys/firmware/efi/efivars", Type: "efivarfs", Flags: noSuid | noDev | noExec, Optional: true, NoCreate: true},
		// Volumes that a pod mounts must show on the node, and the other way round.
		{Source: "none", Target: "/", Flags: unix.MS_SHARED | unix.MS_REC},
	}
}

// directory is one that every boot makes sure of.
type directory struct {
	path string
	mode os.FileMode
}

// directories lie on the data partition or on a tmpfs.
func directories() []directory {
	return []directory{
		{"/var/lib/cairn", 0o700}, {"/var/lib/cairn/config", 0o700}, {"/var/lib/cairn/config.d", 0o700},
		{"/var/lib/cairn/images", 0o700}, {"/var/lib/cairn/ssh", 0o700}, {crashDir, 0o700}, {"/var/lib/cairn/network", 0o700},
		{"/var/lib/cairn/store", 0o700}, {"/var/lib/cairn/server", 0o700}, {"/var/lib/cairn/node", 0o700}, {"/var/lib/cairn/containerd", 0o700},
		{"/var/lib/kubelet", 0o700}, {"/var/log", 0o755}, {"/var/log/pods", 0o755}, {"/var/log/containers", 0o755},
		{"/var/cache", 0o755}, {"/var/tmp", 0o1777}, {"/var/home", 0o755}, {"/var/opt", 0o755}, {"/var/local", 0o755},
		{"/run/cairn", 0o755}, {"/run/cairn/log", 0o700}, {"/run/cairn/notify", 0o700}, {"/run/lock", 0o755},
	}
}

// links in /var for programs that know only the old places.
func links() [][2]string {
	return [][2]string{{"/run", "/var/run"}, {"/run/lock", "/var/lock"}}
}

// persistent are the directories of the root that owners may fill.
func persistent() []mount.Mount {
	return []mount.Mount{
		{Source: "/var/home", Target: "/home", Flags: unix.MS_BIND},
		{Source: "/var/opt", Target: "/opt", Flags: unix.MS_BIND},
		{Source: "/var/local", Target: "/usr/local", Flags: unix.MS_BIND},
	}
}

func (m *machine) makeDirectories(context.Context) error {
	for _, d := range directories() {
		if err := os.MkdirAll(d.path, 0o755); err != nil {
			return err
		}
		mode := d.mode & os.ModePerm
		if d.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(d.path, mode); err != nil {
			return err
		}
	}
	for _, l := range links() {
		if _, err := os.Lstat(l[1]); err == nil {
			continue
		}
		if err := os.Symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	if m.opt.Container {
		return nil
	}
	return mount.ApplyAll("/", persistent())
}

// mountEtc lays a tmpfs over the root's /etc: what the configuration writes there lasts until the next boot, when it is
// made anew.
func (m *machine) mountEtc(context.Context) error {
	const base = "/run/cairn/etc"
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("etc: %w", err)
		}
	}
	return mount.Mount{Source: "etc", Target: "/etc", Type: "overlay", Flags: noSuid | noDev,
		Data: fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work)}.Apply("/")
}
