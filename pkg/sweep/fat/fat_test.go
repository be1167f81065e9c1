package fat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/cairn-os/cairn/pkg/sweep/fat"
)

const size = 34 << 20

// image is a file system with files, and what they hold.
func image(t testing.TB) ([]byte, map[string][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	fs, err := fat32.Create(file.New(f, false), size, 0, 512, "TEST", true)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"vmlinuz": bytes.Repeat([]byte("kernel"), 20000), "initramfs.img": bytes.Repeat([]byte("i"), 70001), "EMPTY": {},
		"cairn/state1.env": bytes.Repeat([]byte("#"), 512), "EFI/BOOT/BOOTX64.EFI": []byte("grub"), "a-name-with-more-than-thirteen-letters.text": []byte("long"),
	}
	for _, dir := range []string{"/cairn", "/EFI/BOOT"} {
		if err := fs.Mkdir(dir); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 { // folders of many clusters
		files[fmt.Sprintf("cairn/file-number-%d", i)] = []byte{byte(i)}
	}
	for name, data := range files {
		out, err := fs.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 {
			if _, err := out.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b, files
}

func open(t testing.TB, b []byte) *fat.FS {
	t.Helper()
	f, err := fat.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// read is a file by its extents.
func read(f *fat.FS, b []byte, name string) ([]byte, error) {
	parts, size, err := f.Extents(name)
	if err != nil {
		return nil, err
	}
	data := []byte{}
	for _, p := range parts {
		data = append(data, b[p.At:p.At+p.Length]...)
	}
	if int64(len(data)) != size {
		return nil, io.ErrUnexpectedEOF
	}
	return data, nil
}

func TestRead(t *testing.T) {
	b, files := image(t)
	f := open(t, b)
	for name, want := range files {
		for _, n := range []string{name, "/" + name, string(bytes.ToUpper([]byte(name)))} {
			got, err := read(f, b, n)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v; want %d", n, len(got), err, len(want))
			}
		}
		if n, err := f.Size(name); err != nil || n != int64(len(want)) {
			t.Errorf("size of %s: %d, %v; want %d", name, n, err, len(want))
		}
		if got, err := f.Head(name, 100); err != nil || !bytes.Equal(got, want[:min(100, len(want))]) {
			t.Errorf("head of %s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"none", "cairn", "", "cairn/none", "vmlinuz/x", "cairn/state1", "TEST"} {
		if _, err := f.Size(name); !errors.Is(err, fat.ErrNotExist) {
			t.Errorf("%q: %v; want ErrNotExist", name, err)
		}
	}
}

// TestDamage breaks one thing at a time.
func TestDamage(t *testing.T) {
	good, _ := image(t)
	le := binary.LittleEndian
	table := int64(le.Uint16(good[14:])) * 512
	parts, _, err := open(t, good).Extents("vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	per := int64(good[13]) * 512
	data := (int64(le.Uint16(good[14:])) + int64(good[16])*int64(le.Uint32(good[36:]))) * 512
	entry := table + 4*((parts[0].At-data)/per+2) // of the kernel's first cluster
	set := func(at int64, v uint32) []byte {
		b := bytes.Clone(good)
		le.PutUint32(b[at:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"chain ends":             set(entry, 0x0fffffff),
		"chain into nothing":     set(entry, 0),
		"chain out of the table": set(entry, 0x0ffffff0),
		"chain in a circle":      set(entry+4, uint32((parts[0].At-data)/per+2)),
	} {
		f := open(t, b)
		if _, _, err := f.Extents("vmlinuz"); !errors.Is(err, fat.ErrDamaged) && name != "chain in a circle" {
			t.Errorf("%s: %v; want ErrDamaged", name, err)
		}
		if _, err := f.Head("vmlinuz", 100); err != nil {
			t.Errorf("%s: head: %v", name, err)
		}
		if _, err := f.Head("cairn/state1.env", 512); err != nil {
			t.Errorf("%s: another file: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"zeros": make([]byte, size), "no signature": set(508, 0), "sectors of 1024": set(11, 0x00010400), "no tables": set(14, 0x00000020),
		"larger than the partition": set(32, 1<<30), "empty": set(32, 8), "FAT16": set(36, 0), "short": good[:100],
	} {
		if _, err := fat.Open(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzFAT(f *testing.F) {
	good, _ := image(f)
	f.Add(uint64(1), []byte{1, 2, 3})
	f.Add(uint64(2), []byte{0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, seed uint64, noise []byte) {
		if len(noise) == 0 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		b := patched{good, map[int64]byte{}}
		// The boot sector, the table's beginning and the first folders.
		areas := []int64{0, 32 * 512, 32*512 + 4*300, int64(32+2*int(binary.LittleEndian.Uint32(good[36:]))) * 512}
		for _, c := range noise {
			b.over[areas[r.IntN(len(areas))]+r.Int64N(1024)] = c
		}
		fs, err := fat.Open(b, size)
		if err != nil {
			return
		}
		for _, name := range []string{"vmlinuz", "cairn/state1.env", "EFI/BOOT/BOOTX64.EFI", "none"} {
			parts, n, err := fs.Extents(name)
			if err != nil {
				continue
			}
			for _, p := range parts {
				if p.At < 0 || p.Length <= 0 || p.At+p.Length > size {
					t.Fatalf("%s: part %+v of a partition of %d", name, p, size)
				}
				n -= p.Length
			}
			if n != 0 {
				t.Fatalf("%s: parts are %d bytes short", name, n)
			}
		}
	})
}

// patched is data with other bytes here and there.
type patched struct {
	data []byte
	over map[int64]byte
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := bytes.NewReader(p.data).ReadAt(b, at)
	for i, c := range p.over {
		if i >= at && i < at+int64(n) {
			b[i-at] = c
		}
	}
	return n, err
}
