package blockdev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sysfs writes the part of /sys that Scan reads.
func sysfs(t *testing.T, devices map[string]string) string {
	t.Helper()
	root := t.TempDir()
	class := filepath.Join(root, "class/block")
	if err := os.MkdirAll(class, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, files := range devices {
		dir := filepath.Join(root, "devices", path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range strings.SplitSeq(files, ";") {
			name, content, _ := strings.Cut(f, ":")
			if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(content, ",", "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(dir, filepath.Join(class, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestScan(t *testing.T) {
	root := sysfs(t, map[string]string{
		"pci0/virtio1/block/vda":      "uevent:MAJOR=254,DEVTYPE=disk;size:409600",
		"pci0/virtio1/block/vda/vda6": "uevent:DEVTYPE=partition,PARTN=6,PARTNAME=CAIRN_DATA,PARTUUID=6C0A-06;size:2048;start:98304",
		"pci0/virtio1/block/vda/vda2": "uevent:DEVTYPE=partition,PARTN=2,PARTNAME=CAIRN_BOOT_A;size:2048;start:4096",
		"virtual/block/loop0":         "uevent:DEVTYPE=disk;size:0",
		"pci0/raid/block/cciss!c0d0":  "uevent:DEVTYPE=disk;size:8",
	})
	got, err := Scan(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{
		{Name: "cciss/c0d0", Disk: "cciss/c0d0", Size: 4096},
		{Name: "loop0", Disk: "loop0", Virtual: true},
		{Name: "vda", Disk: "vda", Size: 409600 * 512},
		{Name: "vda2", Disk: "vda", Number: 2, PartName: "CAIRN_BOOT_A", Start: 4096 * 512, Size: 1 << 20},
		{Name: "vda6", Disk: "vda", Number: 6, PartName: "CAIRN_DATA", PartUUID: "6c0a-06", Start: 98304 * 512, Size: 1 << 20},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Scan (-want +got):\n%s", diff)
	}
	completed := Complete(got, func(disk string) (*Table, error) {
		if disk != "vda" {
			return nil, errors.New("no gpt")
		}
		return &Table{Partitions: []Partition{{Number: 2, Name: "CAIRN_BOOT_A", UUID: "6c0a-02", Start: 4096 * 512}}}, nil
	})
	if completed[3].PartUUID != "6c0a-02" || got[3].PartUUID != "" {
		t.Errorf("Complete gave %+v and left %+v; want the GUID in the first only", completed[3], got[3])
	}
}

func TestFind(t *testing.T) {
	all := []Device{
		{Name: "vda", Disk: "vda"},
		{Name: "vda2", Disk: "vda", Number: 2, PartName: "CAIRN_BOOT_A", PartUUID: "aa"},
		{Name: "vda6", Disk: "vda", Number: 6, PartName: "CAIRN_DATA", PartUUID: "ab"},
		{Name: "vdb2", Disk: "vdb", Number: 2, PartName: "CAIRN_BOOT_A", PartUUID: "bb"},
		{Name: "vdc2", Disk: "vdc", Number: 2, PartName: "CAIRN_BOOT_A", PartUUID: "cc"},
		{Name: "vdd2", Disk: "vdd", Number: 2, PartName: "CAIRN_BOOT_A", PartUUID: "cc"},
		{Name: "vde1", Disk: "vde", Number: 1, PartName: "CAIRN_DATA"},
		{Name: "vde2", Disk: "vde", Number: 2, PartName: "CAIRN_DATA"},
	}
	if disk, err := DiskOf(all, "BB"); disk != "vdb" || err != nil {
		t.Errorf("DiskOf(BB) = %q, %v; want vdb", disk, err)
	}
	if disk, err := DiskOf(all, "dd"); !errors.Is(err, ErrNotFound) {
		t.Errorf("DiskOf(dd) = %q, %v; want ErrNotFound", disk, err)
	}
	disk, err := DiskOf(all, "cc")
	if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "/dev/vdc2") || !strings.Contains(err.Error(), "/dev/vdd2") {
		t.Errorf("DiskOf(cc) = %q, %v; want a refusal that names both", disk, err)
	}
	if d, err := ByName(all, "vda", "CAIRN_DATA"); d.Name != "vda6" || err != nil {
		t.Errorf("ByName(vda, CAIRN_DATA) = %v, %v; want vda6", d, err)
	}
	if _, err := ByName(all, "vdb", "CAIRN_DATA"); !errors.Is(err, ErrNotFound) {
		t.Errorf("ByName(vdb, CAIRN_DATA) = %v; want ErrNotFound", err)
	}
	if _, err := ByName(all, "vde", "CAIRN_DATA"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("ByName(vde, CAIRN_DATA) = %v; want a refusal", err)
	}
}

func TestProbe(t *testing.T) {
	ext := make([]byte, 4096)
	ext[1024+0x38], ext[1024+0x39] = 0x53, 0xef
	tests := []struct {
		data []byte
		want Content
	}{
		{ext, Ext4}, {make([]byte, 2<<20), Blank}, {append(make([]byte, 65536), 1), Unknown}, {nil, Blank}, {[]byte("LUKS"), Unknown},
	}
	for _, tt := range tests {
		if got, err := Probe(bytes.NewReader(tt.data)); got != tt.want || err != nil {
			t.Errorf("Probe(%d bytes) = %v, %v; want %v", len(tt.data), got, err, tt.want)
		}
	}
}
