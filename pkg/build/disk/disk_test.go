package disk

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/grub"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// tools is the tree of ToolPackages, unpacked once.
var tools = sync.OnceValues(func() (string, error) {
	c, err := cache.Open("")
	if err != nil {
		return "", err
	}
	ctx := context.Background()
	archive, err := debian.Open(ctx, c, "amd64")
	if err != nil {
		return "", err
	}
	dir, _, err := archive.Tree(ctx, ToolPackages...)
	return dir, err
})

// spec is a small release; its GRUB is only bytes.
func spec(t *testing.T) Spec {
	t.Helper()
	tools, err := tools()
	if err != nil {
		t.Fatal(err)
	}
	recipe, err := ReadRecipe("../../../images/amd64/disk.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte(name), size/len(name)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return Spec{
		Recipe: recipe, GRUB: grub.Images{Boot: make([]byte, 512), Core: []byte("core"), EFI: bytes.Repeat([]byte("efi"), 300_000)},
		Kernel: write("kernel", 5<<20), Initramfs: write("initramfs", 3<<20), RootImage: write("root", 10<<20),
		RootHash: strings.Repeat("5a", 32), RootBlocks: 2560, Version: "1.2.3", Epoch: time.Unix(1_700_000_000, 0), Tools: tools,
	}
}

func build(t *testing.T, s Spec) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := Build(t.Context(), s, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// same reports whether two readers give the same bytes.
func same(t *testing.T, a, b io.Reader) bool {
	t.Helper()
	one, two := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err1 := io.ReadFull(a, one)
		m, err2 := io.ReadFull(b, two)
		if !bytes.Equal(one[:n], two[:m]) {
			return false
		}
		if err1 != nil || err2 != nil {
			return (err1 == io.EOF || err1 == io.ErrUnexpectedEOF) && err1 == err2
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestBuildTwiceGivesTheSameBytes(t *testing.T) {
	s := spec(t)
	first, second := build(t, s), build(t, s)
	if !same(t, open(t, first), open(t, second)) {
		t.Error("two builds of the same inputs differ")
	}
	packed := []string{first + ".zst", second + ".zst"}
	for i, image := range []string{first, second} {
		start := time.Now()
		if err := Compress(t.Context(), image, packed[i]); err != nil {
			t.Fatal(err)
		}
		t.Logf("compressed in %v", time.Since(start))
	}
	if !same(t, open(t, packed[0]), open(t, packed[1])) {
		t.Error("two compressions of the same image differ")
	}
	z, err := zstd.NewReader(open(t, packed[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if !same(t, z, open(t, first)) {
		t.Error("the compressed image is another one")
	}
	one, err := s.identity()
	if err != nil {
		t.Fatal(err)
	}
	s.Version = "1.2.4"
	if two, err := s.identity(); err != nil || one.uuid("disk") == two.uuid("disk") || one.uuid("disk") == one.uuid("data") {
		t.Errorf("identifiers of other things or versions are the same (%v)", err)
	}
}

func TestBuild(t *testing.T) {
	made := spec(t)
	image := build(t, made)
	for _, name := range []string{partition.System, partition.BootA, partition.BootB} {
		check(t, image, name, "fsck.fat", "-n")
	}
	check(t, image, partition.Data, "e2fsck", "-fn")

	kernel, err := ReadFile(image, partition.BootA, "vmlinuz")
	if err != nil || !bytes.HasPrefix(kernel, []byte("kernelkernel")) {
		t.Errorf("vmlinuz: %.20q, %v", kernel, err)
	}
	env, err := ReadFile(image, partition.BootA, "slot.env")
	if err != nil {
		t.Fatal(err)
	}
	vars, err := slot.DecodeBlock(env)
	want := map[string]string{"cmdline": "cairn.roothash=" + strings.Repeat("5a", 32) +
		" cairn.rootblocks=2560 " + made.Recipe.Cmdline}
	if diff := cmp.Diff(want, vars); diff != "" || err != nil {
		t.Errorf("slot.env (-want +got): %v\n%s", err, diff)
	}
	var copies [2][]byte
	for i, name := range StateFiles {
		if copies[i], err = ReadFile(image, partition.System, name); err != nil || len(copies[i]) != slot.Size {
			t.Errorf("%s: %d bytes, %v; want one sector", name, len(copies[i]), err)
		}
	}
	if s, i, err := slot.Choose(copies[0], copies[1]); s != slot.New(slot.A) || i != 0 || err != nil {
		t.Errorf("state of a new image: %v in copy %d, %v", s, i, err)
	}
}

// TestBootImage compares what an upgrade writes with what a flashed disk has.
func TestBootImage(t *testing.T) {
	s := spec(t)
	image, boot := build(t, s), filepath.Join(t.TempDir(), "boot.img")
	if err := BootImage(t.Context(), s, boot); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(boot)
	if err != nil {
		t.Fatal(err)
	}
	if n := info.Size(); n < 9<<20 || n > 14<<20 || n%512 != 0 {
		t.Errorf("boot image of %d bytes for files of 9 MB", n)
	}
	disk := open(t, image)
	start, _, err := locate(disk, partition.BootA)
	if err != nil {
		t.Fatal(err)
	}
	if !same(t, open(t, boot), io.NewSectionReader(disk, start, info.Size())) {
		t.Error("the boot image is not what slot a begins with")
	}
	// It works in a partition that was full of something else.
	disk, err = os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	start, size, err := locate(disk, partition.BootB)
	if err != nil {
		t.Fatal(err)
	}
	junk := bytes.Repeat([]byte("junk"), 1<<18)
	for at := int64(0); at < size; at += int64(len(junk)) {
		if _, err := disk.WriteAt(junk, start+at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(io.NewOffsetWriter(disk, start), open(t, boot)); err != nil {
		t.Fatal(err)
	}
	check(t, image, partition.BootB, "fsck.fat", "-n")
	kernel, err := ReadFile(image, partition.BootB, "vmlinuz")
	if err != nil || !bytes.HasPrefix(kernel, []byte("kernelkernel")) || len(kernel) != 5<<20/6*6 {
		t.Errorf("vmlinuz in slot b: %d bytes, %v", len(kernel), err)
	}
}

func TestSeed(t *testing.T) {
	image := build(t, spec(t))
	seed := map[string][]byte{"config.yaml": []byte("hostname: x\n"), "images/hello.tar": bytes.Repeat([]byte("tar"), 1<<20)}
	longer := map[string][]byte{"config.yaml": bytes.Repeat([]byte("# old\n"), 1000), "images/hello.tar": bytes.Repeat([]byte("old"), 1<<21)}
	for _, files := range []map[string][]byte{longer, seed} { // the second replaces the first
		if err := Seed(image, files); err != nil {
			t.Fatal(err)
		}
	}
	clone := filepath.Join(t.TempDir(), "clone.img")
	if err := Copy(image, clone); err != nil {
		t.Fatal(err)
	}
	if !same(t, open(t, image), open(t, clone)) {
		t.Error("the copy differs")
	}
	for name, want := range seed {
		got, err := ReadFile(clone, partition.System, "seed/"+name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("seed/%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	check(t, clone, partition.System, "fsck.fat", "-n")
	if err := EditFAT(image, "CAIRN_NONE", func(*fat32.FileSystem) error { return nil }); err == nil {
		t.Error("a partition that is not there gave no error")
	}
}

func TestSpecRefuses(t *testing.T) {
	s := spec(t)
	s.Recipe.Cmdline = `x="a b"`
	if err := Build(t.Context(), s, filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("quotes in the command line gave no error")
	}
}

// check runs a file system's own checker on a partition.
func check(t *testing.T, image, name, program string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%v (./build.sh deps)", err)
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start, size, err := locate(f, name)
	if err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(t.TempDir(), name)
	out, err := os.Create(part)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, io.NewSectionReader(f, start, size))
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command(path, append(args, part)...).CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", program, name, err, text)
	}
}
