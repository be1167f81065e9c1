package binaries

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
)

func TestLinkerFlags(t *testing.T) {
	flags := linkerFlags("1.2.3", map[string]string{kubernetesModule: "v1.36.4", containerdModule: "v2.3.7"})
	for _, want := range []string{
		"-X=github.com/cairn-os/cairn/pkg/release.Version=1.2.3",
		"-X=k8s.io/component-base/version.gitVersion=v1.36.4",
		"-X=k8s.io/component-base/version.gitMajor=1",
		"-X=k8s.io/client-go/pkg/version.gitMinor=36",
		"-X=github.com/containerd/containerd/v2/version.Version=v2.3.7",
	} {
		if !slices.Contains(flags, want) {
			t.Errorf("no %s in %q", want, flags)
		}
	}
}

func TestModuleVersions(t *testing.T) {
	versions, err := moduleVersions(t.Context(), "../../..")
	if err != nil {
		t.Fatal(err)
	}
	if versions[kubernetesModule] == "" {
		t.Errorf("no version of %s", kubernetesModule)
	}
}

func TestSourceTime(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1767225600")
	got, err := SourceTime(t.Context(), "../../..")
	if want := time.Unix(1767225600, 0); err != nil || !got.Equal(want) {
		t.Errorf("SourceTime = %v, %v; want %v", got, err, want)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := SourceTime(t.Context(), "../../.."); err == nil {
		t.Error("SourceTime takes a word for a number of seconds")
	}
	os.Unsetenv("SOURCE_DATE_EPOCH") // Setenv above restores it
	got, err = SourceTime(t.Context(), t.TempDir())
	if err != nil || got.Unix() != 0 {
		t.Errorf("SourceTime without history = %v, %v; want the epoch", got, err)
	}
}

// TestRuncTwice builds the program with the most C in it at two places: it is
// static, the same both times, and of the root file system's C library.
func TestRuncTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("short: compiles dqlite and runc")
	}
	for _, tool := range []string{"apt-get", "autoreconf", "x86_64-linux-gnu-gcc", "dpkg-source"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot compile C here: %v", err)
		}
	}
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	a, err := debian.Open(t.Context(), c, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var programs [][]byte
	for range 2 {
		o := Options{Repo: "../../..", Cache: c, Archive: a}.withDefaults()
		lib, err := libraries(t.Context(), o, targets["amd64"])
		if err != nil {
			t.Fatal(err)
		}
		b := cgoBuild(o, targets["amd64"], lib, []string{"-s", "-w"})
		b.dir = t.TempDir()
		s := &Set{Files: map[string]string{}}
		if err := b.run(t.Context(), "compile: runc", cPrograms[1:], s); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(b.dir, "runc"))
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, data)
	}
	if !bytes.Equal(programs[0], programs[1]) {
		t.Error("two builds of runc differ")
	}
	f, err := elf.NewFile(bytes.NewReader(programs[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("runc asks for a dynamic linker")
		}
	}
	path := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(path, programs[0], 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "--version").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("libseccomp: 2.6")) {
		t.Errorf("runc --version: %v; want libseccomp 2.6, the sysroot's\n%s", err, out)
	}
}
