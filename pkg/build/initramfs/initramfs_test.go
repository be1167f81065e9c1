package initramfs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

func build(t *testing.T, program []byte, modTime time.Time) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "any name")
	if err := os.WriteFile(path, program, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, modTime, modTime); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Build(path, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBuild(t *testing.T) {
	program := bytes.Repeat([]byte("\x7fELF program "), 20000)
	image := build(t, program, time.Now())

	z, err := zstd.NewReader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	all, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(plain)))
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		Mode         uint64
		Major, Minor uint64
		Size         uint64
	}
	got := map[string]entry{}
	inodes := map[uint64]string{}
	for _, r := range all {
		got[r.Name] = entry{r.Mode, r.Rmajor, r.Rminor, r.FileSize}
		if other, ok := inodes[r.Ino]; ok {
			t.Errorf("%s has the inode number of %s", r.Name, other)
		}
		inodes[r.Ino] = r.Name
		if r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s: owner %d:%d, time %d; want 0:0, 0", r.Name, r.UID, r.GID, r.MTime)
		}
		if r.Name == "init" {
			content, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
			if err != nil || !bytes.Equal(content, program) {
				t.Errorf("init holds %d bytes, %v; want the program's %d", len(content), err, len(program))
			}
		}
	}
	want := map[string]entry{
		".": {Mode: 0o40755}, "dev": {Mode: 0o40755}, "proc": {Mode: 0o40755},
		"run": {Mode: 0o40755}, "sys": {Mode: 0o40755}, "sysroot": {Mode: 0o40755},
		"dev/console": {Mode: 0o20600, Major: 5, Minor: 1},
		"init":        {Mode: 0o100755, Size: uint64(len(program))},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestBuildIsReproducible(t *testing.T) {
	program := bytes.Repeat([]byte("program"), 300000)
	first := build(t, program, time.Unix(1, 0))
	second := build(t, program, time.Unix(2, 0))
	if !bytes.Equal(first, second) {
		t.Error("two builds from one program differ")
	}
}

func TestBuildWithoutProgram(t *testing.T) {
	var out bytes.Buffer
	if err := Build(filepath.Join(t.TempDir(), "absent"), &out); err == nil {
		t.Error("Build of an absent program succeeds")
	}
}
