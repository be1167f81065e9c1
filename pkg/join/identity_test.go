package join

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// unreadable is a file that no disk reads: at its begin nothing is mapped.
const unreadable = "/proc/self/mem"

// TestAgentWithoutIdentity comes up by its certificates, whatever became of its identity, its token and its servers. It
// joins again when a certificate has ended.
func TestAgentWithoutIdentity(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"damaged": func(path string) error { return os.WriteFile(path, []byte("junk"), 0o600) },
		"lost":    os.Remove,
		"unread":  func(path string) error { return errors.Join(os.Remove(path), os.Symlink(unreadable, path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			o, status := c.machine(membership.Agent, "shop", c.token(token.Server))
			mustRun(t, o)
			before := c.identityOf("shop")
			if err := spoil(IdentityFile(o.Dir)); err != nil {
				t.Fatal(err)
			}
			had := files(t, o.Dir)
			for _, change := range []func(*Options){func(*Options) {}, func(o *Options) { o.Token = "" }, func(o *Options) { o.ServerURL = "https://127.0.0.1:1" }} {
				p := o
				change(&p)
				mustRun(t, p)
				if !strings.Contains(*status, "goes on by the certificates") || !strings.Contains(*status, "cairn.token") {
					t.Errorf("status %q", *status)
				}
				if got := files(t, o.Dir); strings.Join(got, " ") != strings.Join(had, " ") {
					t.Errorf("files %v; want those of before, %v", got, had)
				}
			}
			renamed := o
			renamed.Node, renamed.Token = "depot", ""
			if err := run(t, renamed); err == nil {
				t.Error("an agent with another name went on by the certificates of the old one")
			}
			c.advance(3 * 365 * 24 * time.Hour)
			c.renewServer(t)
			o.ServerURL = c.http.URL
			o.pause = func(context.Context, time.Duration) error {
				if strings.HasPrefix(*status, "the disk does not read") {
					return nil
				}
				return errStop
			}
			c.await(t, o)
			if now := c.identityOf("shop"); now == before || now != identityOf(t, o) {
				t.Error("it did not join by another identity")
			}
		})
	}
}

// TestDiskFails keeps an identity that the disk does not read for a while, and gives it up when that lasts.
func TestDiskFails(t *testing.T) {
	c := newCluster(t)
	for name, fails := range map[string]int{"passes": readings - 1, "lasts": readings} {
		t.Run(name, func(t *testing.T) {
			o, status := c.machine(membership.Witness, name, c.token(token.Server))
			mustRun(t, o)
			before, path := identityOf(t, o), IdentityFile(o.Dir)
			if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(unreadable, path)); err != nil {
				t.Fatal(err)
			}
			if _, err := loadIdentity(path); !errors.Is(err, syscall.EIO) {
				t.Skip("this kernel does not fail as a disk does:", err)
			}
			o.Token = ""
			pauses := 0
			o.pause = func(context.Context, time.Duration) error {
				if pauses++; pauses < readings && !strings.Contains(*status, "the disk does not read") {
					t.Errorf("status %q", *status)
				}
				if pauses < fails {
					return nil
				}
				err := os.Rename(path+".real", path)
				if pauses == readings { // it was given up
					return errors.Join(errStop, err)
				}
				return err
			}
			err := run(t, o)
			if r := new(Refusal); fails == readings && (!errors.As(err, &r) || r.Code != CodeIdentity) || fails < readings && err != nil {
				t.Errorf("Run = %v", err)
			}
			if now := identityOf(t, o); now != before {
				t.Error("it has another identity")
			}
			if _, err := os.Stat(path + ".damaged"); err == nil {
				t.Error("it was set aside")
			}
		})
	}
}

// TestIdentityComesBack returns the identity that was set aside when it is good after all, and no other one.
func TestIdentityComesBack(t *testing.T) {
	c := newCluster(t)
	for name, place := range map[string]func(o Options, path string) error{
		"lost":    func(Options, string) error { return nil },
		"damaged": func(_ Options, path string) error { return os.WriteFile(path, []byte("junk"), 0o600) },
		"another": func(o Options, path string) error { _, err := ensureIdentity(path, o.write); return err },
	} {
		for _, role := range []membership.Role{membership.Agent, membership.Witness, membership.Server} {
			o, _ := c.machine(role, name+"-"+string(role), c.token(token.Server))
			o.Addresses = nil
			mustRun(t, o)
			o = o.withDefaults()
			before, path := identityOf(t, o), IdentityFile(o.Dir)
			if err := errors.Join(setAside(path), place(o, path)); err != nil {
				t.Fatal(err)
			}
			o.Token = ""
			if role == membership.Agent { // it needs it
				if err := os.Remove(pki.PairFile(o.path(nodeTLS), pki.KubeletServer)); err != nil {
					t.Fatal(err)
				}
			}
			mustRun(t, o)
			if same := identityOf(t, o) == before; same == (role == membership.Server && name == "another") {
				t.Errorf("%s, %s: the identity of before: %t", name, role, same)
			}
		}
	}
	o, _ := c.machine(membership.Witness, "stranger", c.token(token.Server))
	mustRun(t, o)
	before := identityOf(t, o)
	if _, err := ensureIdentity(asideOf(IdentityFile(o.Dir)), os.WriteFile); err != nil {
		t.Fatal(err)
	}
	mustRun(t, o)
	if identityOf(t, o) != before {
		t.Error("it took another identity that was set aside")
	}
}

// TestEndJoiningReadOnly removes nothing from a file system that became read-only, where nothing is to be removed.
func TestEndJoiningReadOnly(t *testing.T) {
	dir := t.TempDir()
	ended := make(chan error, 1)
	skip := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its mounts
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "")
		}
		if err != nil {
			skip <- err
			return
		}
		ended <- Options{Dir: dir}.endJoining()
	}()
	select {
	case err := <-skip:
		t.Skip("no mounts here:", err)
	case err := <-ended:
		if err != nil {
			t.Errorf("endJoining = %v", err)
		}
	}
}
