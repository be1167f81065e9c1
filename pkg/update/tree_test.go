package update

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// TestVerityTree compares with what the image builder's library writes, for trees of one, two and three levels.
func TestVerityTree(t *testing.T) {
	for _, blocks := range []int{2, 127, 128, 129, 128*2 + 1, 128*128 + 1} {
		data := make([]byte, blocks*verityBlock)
		copy(data, noise(blocks, 10_000))
		whole, want := withTree(data)
		covered := int64(len(data) + verityBlock)
		tree, got, err := verityTree(t.Context(), bytes.NewReader(whole[:covered]), covered)
		if err != nil {
			t.Errorf("%d blocks: %v", blocks, err)
			continue
		}
		if got != want || !bytes.Equal(tree, whole[covered:]) {
			t.Errorf("%d blocks: root hash %s, %d bytes of tree; want %s, %d", blocks, got, len(tree), want, int64(len(whole))-covered)
		}
	}
}

func TestVerityTreeRefuses(t *testing.T) {
	whole, _ := withTree(noise(1, 3*verityBlock))
	covered := int64(4 * verityBlock)
	at := 3 * verityBlock
	for name, tt := range map[string]struct {
		change func(b []byte)
		length int64
		want   string
	}{
		"no superblock": {func(b []byte) { clear(b[at:]) }, covered, "verity superblock"},
		"hash type":     {func(b []byte) { b[at+12] = 0 }, covered, "hash type 0"},
		"algorithm":     {func(b []byte) { copy(b[at+32:], "sha512") }, covered, `"sha512"`},
		"block size":    {func(b []byte) { binary.LittleEndian.PutUint32(b[at+64:], 1024) }, covered, "blocks of 1024"},
		"block count":   {func(b []byte) { b[at+72] = 9 }, covered, "9 blocks"},
		"salt":          {func(b []byte) { binary.LittleEndian.PutUint16(b[at+80:], 999) }, covered, "verity superblock"},
		"short":         {func([]byte) {}, verityBlock, "no file system"},
		"uneven":        {func([]byte) {}, covered + 1, "in whole blocks"},
		"beyond":        {func([]byte) {}, covered + 40*verityBlock, "verity superblock"},
	} {
		b := bytes.Clone(whole)
		tt.change(b)
		if _, _, err := verityTree(t.Context(), bytes.NewReader(b), tt.length); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}
