package rootfs

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/cairn-os/cairn/pkg/build/binaries"
	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/release"
)

// buildSmall makes the real root file system with one small program in the
// place of all of ours, in an empty cache.
func buildSmall(t *testing.T, a *debian.Archive, program string) *Root {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	modules := t.TempDir()
	if err := os.WriteFile(filepath.Join(modules, "modules.dep"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Build(t.Context(), Options{
		Repo:     "../../..",
		Cache:    c,
		Archive:  a,
		Programs: &binaries.Set{Files: map[string]string{"usr/sbin/init": program, "usr/bin/cairn-kube": program}, Dqlite: "1"},
		Release:  release.Info{Version: "1.2.3", BuildTime: 1767225600},
		Extra:    map[string]string{"usr/lib/modules/6.12.0": modules},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBuildTwice makes the root file system twice from nothing and compares.
func TestBuildTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("short: unpacks and compresses all packages twice")
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot unpack packages here: %v", err)
		}
	}
	program := filepath.Join(t.TempDir(), "program")
	goBuild := exec.Command("go", "build", "-trimpath", "-o", program, "testdata/program.go")
	goBuild.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := goBuild.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var images [][]byte
	var root *Root
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	a, err := debian.Open(t.Context(), c, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		root = buildSmall(t, a, program)
		data, err := os.ReadFile(root.Image)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, data)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two builds from the same inputs differ")
	}
	checkTree(t, root)
	checkVerity(t, root)
	checkManifest(t, root.Manifest)
}

func checkTree(t *testing.T, r *Root) {
	t.Helper()
	for name, want := range map[string]string{
		"etc/os-release":                     "ID=cairn",
		"etc/ssl/certs/ca-certificates.crt":  "BEGIN CERTIFICATE",
		"etc/shadow":                         "root:*:",
		"usr/lib/cairn/release.json":         `"version": "1.2.3"`,
		"usr/share/doc/busybox/copyright":    "GPL",
		"etc/protocols":                      "tcp",
		"usr/lib/modules/6.12.0/modules.dep": "",
	} {
		data, err := os.ReadFile(filepath.Join(r.Tree, name))
		if err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %v; want one with %q", name, err, want)
		}
	}
	for link, want := range map[string]string{"usr/bin/sh": "busybox", "usr/bin/kubectl": "cairn-kube", "bin": "usr/bin", "usr/sbin/reboot": "init"} {
		if got, err := os.Readlink(filepath.Join(r.Tree, link)); err != nil || got != want {
			t.Errorf("%s -> %q, %v; want %q", link, got, err, want)
		}
	}
	if info, err := os.Lstat(filepath.Join(r.Tree, "usr/bin/mount")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("usr/bin/mount: %v, %v; want the real one, not busybox", info, err)
	}
	if info, err := os.Lstat(filepath.Join(r.Tree, "etc/shadow")); err != nil || info.Mode() != 0o600 {
		t.Errorf("etc/shadow: %v, %v; want mode 0600", info, err)
	}
}

// checkVerity reads the image as a kernel would, and once more with one bit
// changed.
func checkVerity(t *testing.T, r *Root) {
	t.Helper()
	hash, err := hex.DecodeString(r.RootHash)
	if err != nil || len(hash) != 32 {
		t.Fatalf("root hash %q: %v; want 64 hex digits", r.RootHash, err)
	}
	check := func(image string) error {
		params := verity.DefaultParams()
		params.HashAreaOffset = uint64(r.Blocks) * BlockSize
		return verity.Verify(&params, image, image, hash)
	}
	if err := check(r.Image); err != nil {
		t.Errorf("the image does not match its root hash: %v", err)
	}
	data, err := os.ReadFile(r.Image)
	if err != nil {
		t.Fatal(err)
	}
	if len(data)%BlockSize != 0 {
		t.Errorf("the image has %d bytes: no whole number of blocks", len(data))
	}
	data[len(data)/3] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(bad); err == nil {
		t.Error("an image with one bit changed still matches the root hash")
	}
}

func checkManifest(t *testing.T, m Manifest) {
	t.Helper()
	found := map[string]bool{}
	for _, p := range m.Packages {
		found[p.Name] = true
		if p.Version == "" || len(p.SHA256) != 64 {
			t.Errorf("package without version or digest: %+v", p)
		}
		if p.Name == "libc6" && p.Size < 1<<20 {
			t.Errorf("libc6 takes %d bytes; want some MiB", p.Size)
		}
	}
	for _, want := range []string{"libc6", "nftables", "ca-certificates"} {
		if !found[want] {
			t.Errorf("package %s is missing", want)
		}
	}
	if len(m.Programs) != 2 || m.Programs[1].Path != "/usr/sbin/init" || m.Programs[1].Go == "" || len(m.Programs[1].SHA256) != 64 {
		t.Errorf("programs: %+v", m.Programs)
	}
	if m.TreeSize == 0 || m.ImageSize == 0 || m.ImageSize > m.TreeSize {
		t.Errorf("sizes: tree %d, image %d", m.TreeSize, m.ImageSize)
	}
}
