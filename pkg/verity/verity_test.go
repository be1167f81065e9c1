package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dmverity "github.com/containerd/go-dmverity/pkg/verity"
)

const blocks = 300 // three levels would need 128*128; this has two

// image writes a file with data, superblock and tree, as a root partition holds them.
func image(t *testing.T) (path string, root Root) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "root.img")
	data := make([]byte, blocks*BlockSize)
	for i := range data {
		data[i] = byte(i / 4096 * 7)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p := dmverity.DefaultParams()
	p.DataBlockSize, p.HashBlockSize, p.DataBlocks = BlockSize, BlockSize, blocks
	p.HashAreaOffset = blocks * BlockSize
	p.Salt, p.SaltSize = bytes.Repeat([]byte{0xa5}, 32), 32
	p.UUID = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	hash, err := dmverity.Create(&p, path, path)
	if err != nil {
		t.Fatal(err)
	}
	return path, Root{hex.EncodeToString(hash), blocks}
}

func TestTable(t *testing.T) {
	path, root := image(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := Table(f, "/dev/vda4", root)
	if err != nil {
		t.Fatal(err)
	}
	want := Target{Sectors: blocks * 8, Params: fmt.Sprintf("1 /dev/vda4 /dev/vda4 4096 4096 300 301 sha256 %s %s",
		root.Hash, strings.Repeat("a5", 32))}
	if got != want {
		t.Errorf("Table() = %+v; want %+v", got, want)
	}
}

func TestTableRefuses(t *testing.T) {
	path, root := image(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const super = blocks * BlockSize
	for name, at := range map[string]int{"signature": 0, "version": 8, "hash type": 12, "algorithm": 32, "data block": 64, "hash block": 68, "blocks": 72, "salt size": 81} {
		data := bytes.Clone(good)
		data[super+at] ^= 0x40
		if got, err := Table(bytes.NewReader(data), "x", root); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s flipped: Table() = %v, %v; want ErrCorrupt", name, got, err)
		}
	}
	if _, err := Table(bytes.NewReader(good[:super]), "x", root); !errors.Is(err, ErrCorrupt) {
		t.Errorf("truncated: Table() = %v; want ErrCorrupt", err)
	}
	for _, r := range []Root{{"", blocks}, {root.Hash[1:], blocks}, {"zz" + root.Hash[2:], blocks}, {root.Hash, 0}, {root.Hash, 1 << 60}} {
		if _, err := Table(bytes.NewReader(good), "x", r); err == nil {
			t.Errorf("Table() with %v succeeded", r)
		}
	}
}

func FuzzTable(f *testing.F) {
	sb := dmverity.NewSuperblock()
	sb.DataBlocks = 1
	raw, err := sb.Serialize()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, super []byte) {
		_, _ = Table(bytes.NewReader(append(make([]byte, BlockSize), super...)), "x", Root{strings.Repeat("0", 64), 1})
	})
}
