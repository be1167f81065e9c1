package sweep

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/partition"
)

func tableOf(t testing.TB) (image []byte, want table) {
	t.Helper()
	path, _ := machine(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image = make([]byte, partition.DiskSize(parts()))
	if _, err := f.ReadAt(image, 0); err != nil {
		t.Fatal(err)
	}
	want = table{}
	for _, p := range parts() {
		want[p.Number] = extent{p.Start / SectorSize, (p.Start + p.Size) / SectorSize}
	}
	return image, want
}

func TestReadTable(t *testing.T) {
	image, want := tableOf(t)
	size := int64(len(image))
	last := int(size) - SectorSize
	for _, tt := range []struct {
		name string
		flip []int // bytes that are damaged
		ok   bool
	}{
		{"whole", nil, true},
		{"sum of the first head", []int{512 + 17}, true},
		{"a name in the first entries", []int{1024 + 60}, true},
		{"the second head", []int{last}, true},
		{"the first signature", []int{512}, false},
		{"a start in the first entries", []int{1024 + 32}, false},
		{"sums of both", []int{512 + 17, last + 17}, false},
	} {
		flip := func() {
			for _, at := range tt.flip {
				image[at] ^= 1
			}
		}
		flip()
		got, err := readTable(bytes.NewReader(image), size)
		flip()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
		if tt.ok && !cmp.Equal(want, got, cmp.AllowUnexported(extent{})) {
			t.Errorf("%s: %v; want %v", tt.name, got, want)
		}
	}
}

func TestRegions(t *testing.T) {
	_, whole := tableOf(t)
	g, err := newRegions(whole, []int64{100, 200, 100})
	if err != nil {
		t.Fatal(err)
	}
	a, b := whole[partition.RootANumber].from, whole[partition.RootBNumber].from
	for _, tt := range []struct {
		sector int64
		want   region
	}{
		{0, tableArea}, {2047, tableArea}, {2048, coreArea}, {whole[1].from, systemArea}, {whole[2].to - 1, bootArea}, {whole[3].from, bootArea + 1},
		{a, rootArea}, {a + 99, rootArea}, {a + 100, rootArea + 1}, {a + 200, ignored}, {b, rootArea + 2}, {b + 199, rootArea + 3}, {b + 200, ignored},
		{whole[6].from, ignored}, {whole[6].to, tableArea},
	} {
		if got, _ := g.at(tt.sector); got != tt.want {
			t.Errorf("region of sector %d: %d; want %d", tt.sector, got, tt.want)
		}
	}
	if g.matters(b+200, 100) || !g.matters(b+199, 100) || !g.matters(whole[6].to-1, 2) {
		t.Error("what matters is wrong at a region's end")
	}
	if _, err := newRegions(whole, []int64{1 << 20}); err == nil {
		t.Error("a root that is larger than its partition gave no error")
	}
	delete(whole, partition.BootBNumber)
	if _, err := newRegions(whole, []int64{100}); err == nil {
		t.Error("a missing partition gave no error")
	}
}

func FuzzReadTable(f *testing.F) {
	image, _ := tableOf(f)
	f.Add(bytes.Clone(image[:34*SectorSize]))
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, 70*SectorSize)
		copy(b, head)
		got, err := readTable(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for number, x := range got {
			if x.empty() || x.from < 0 || number < 1 || number > gptEntries {
				t.Errorf("partition %d: %v", number, x)
			}
		}
		_, _ = newRegions(got, []int64{8})
	})
}
