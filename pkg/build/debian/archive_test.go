package debian

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/build/cache"
)

// open returns the real archive; it needs apt and, with an empty cache, a
// connection to a mirror.
func open(t *testing.T, arch string) *Archive {
	t.Helper()
	if testing.Short() {
		t.Skip("short: the real archive is not asked")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skipf("no apt on this machine: %v", err)
	}
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(t.Context(), c, arch)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTree(t *testing.T) {
	a := open(t, "amd64")
	dir, pkgs, err := a.Tree(t.Context(), "busybox", "e2fsprogs", "logsave-")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range pkgs {
		names = append(names, p.Name)
		if p.Version == "" || p.Arch == "" || len(p.SHA256) != 64 || p.Source == "" {
			t.Errorf("incomplete package: %+v", p)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("packages are not sorted: %v", names)
	}
	for _, want := range []string{"busybox", "e2fsprogs", "libc6", "libext2fs2t64"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing from %v", want, names)
		}
	}
	for _, not := range []string{"logsave", "dpkg", "debconf", "perl-base"} {
		if slices.Contains(names, not) {
			t.Errorf("%s must not be in %v", not, names)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "sbin")); err != nil || target != "usr/sbin" {
		t.Errorf("sbin -> %q, %v; want usr/sbin", target, err)
	}
	out, err := Command(t.Context(), dir, "usr/sbin/mke2fs", "-V").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "mke2fs 1.") {
		t.Errorf("mke2fs of the tree: %v\n%s", err, out)
	}
}

func TestForeignTree(t *testing.T) {
	a := open(t, "arm64")
	pkgs, err := a.Resolve(t.Context(), "busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pkgs {
		if p.Name == "busybox" && p.Arch != "arm64" {
			t.Errorf("busybox is for %s; want arm64", p.Arch)
		}
	}
}

func TestSource(t *testing.T) {
	if _, err := exec.LookPath("dpkg-source"); err != nil {
		t.Skipf("no dpkg-dev on this machine: %v", err)
	}
	a := open(t, "amd64")
	dir, version, err := a.Source(t.Context(), "dqlite")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(version, "1.") {
		t.Errorf("version %q; want 1.…", version)
	}
	if _, err := os.Stat(filepath.Join(dir, "configure.ac")); err != nil {
		t.Error(err)
	}
}

func TestResolveUnknown(t *testing.T) {
	a := open(t, "amd64")
	_, err := a.Resolve(t.Context(), "no-such-package-as-this")
	if err == nil || !strings.Contains(err.Error(), "no-such-package-as-this") {
		t.Errorf("error %v; want one that names the package", err)
	}
}
