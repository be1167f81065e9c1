package bootdisk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/blockdev"
)

var (
	disk      = blockdev.Device{Name: "vda", Disk: "vda", Size: 2 << 30}
	loop      = blockdev.Device{Name: "loop0", Disk: "loop0", Virtual: true}
	partition = blockdev.Device{Name: "vda2", Disk: "vda", Number: 2, PartUUID: "aa"}
)

// finder sees one of the given states per scan, and the last one from then on.
func finder(states ...[]blockdev.Device) (*Finder, *strings.Builder) {
	var out strings.Builder
	n := 0
	return &Finder{
		Logf:   func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) },
		Scan:   func() ([]blockdev.Device, error) { n++; return states[min(n, len(states))-1], nil },
		Repair: func(string, string) (bool, error) { return false, nil },
		Remind: time.Millisecond,
	}, &out
}

func TestFindWaits(t *testing.T) {
	f, out := finder([]blockdev.Device{loop}, []blockdev.Device{loop, disk}, []blockdev.Device{disk, partition})
	got, _, err := f.Find(t.Context(), "AA")
	if got != "vda" || err != nil {
		t.Errorf("Find() = %q, %v; want vda", got, err)
	}
	want := "waiting for the disk with partition AA; disks so far: none\n" +
		"waiting for the disk with partition AA; disks so far: /dev/vda (2048 MiB)\n"
	if out.String() != want {
		t.Errorf("the console said %q; want %q", out, want)
	}
}

func TestFindGivesUp(t *testing.T) {
	f, _ := finder([]blockdev.Device{disk})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _, err := f.Find(ctx, "aa")
	if !errors.Is(err, blockdev.ErrNotFound) || !strings.Contains(err.Error(), "/dev/vda (2048 MiB)") {
		t.Errorf("Find() = %v; want ErrNotFound with the disks seen", err)
	}
}

func TestFindRefusesCopies(t *testing.T) {
	f, _ := finder([]blockdev.Device{partition, {Name: "vdb2", Disk: "vdb", Number: 2, PartUUID: "aa"}})
	if got, _, err := f.Find(t.Context(), "aa"); err == nil {
		t.Errorf("Find() = %q among two disks; want a refusal", got)
	}
}

func TestFindRepairs(t *testing.T) {
	f, out := finder([]blockdev.Device{disk, loop})
	var tried []string
	f.Repair = func(name, partUUID string) (bool, error) {
		tried = append(tried, name+" for "+partUUID)
		f.Scan = func() ([]blockdev.Device, error) { return []blockdev.Device{disk, partition}, nil }
		return true, nil
	}
	if got, _, err := f.Find(t.Context(), "aa"); got != "vda" || err != nil {
		t.Errorf("Find() = %q, %v; want vda", got, err)
	}
	if len(tried) != 1 || tried[0] != "vda for aa" || !strings.Contains(out.String(), "restored from its backup") {
		t.Errorf("repaired %v and said %q; want vda once", tried, out)
	}
}
