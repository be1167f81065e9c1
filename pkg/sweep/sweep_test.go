package sweep

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// TestUpgrade sweeps an upgrade in the right order, with the real backend.
func TestUpgrade(t *testing.T) {
	u := newUpgrade(t)
	u.phase("invalidate")
	u.invalidate()
	u.phase("root")
	u.root()
	u.phase("boot")
	u.bootFiles()
	u.phase("arm")
	u.arm()
	u.phase("trial")
	u.start()
	u.phase("confirm")
	u.confirm()
	u.phase("confirmed")
	u.write(partition.Data, 0, make([]byte, 4096), 512)
	u.sync()
	rec, o := u.record()
	for i := range rec.Phases {
		switch rec.Phases[i].Name {
		case "invalidate", "root", "boot":
			rec.Phases[i].Boots = []string{"old"}
		case "confirmed":
			rec.Phases[i].Boots = []string{"new"}
		}
	}
	r := sweep(t, rec, o)
	t.Logf("\n%s", r)
	if r.Bad() != 0 {
		t.Error("bad states")
	}
}

// TestWrongOrders shows that orders which would brick a shop are caught.
func TestWrongOrders(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(u *upgrade)
		want string // in the first failure
	}{
		{"arm before the root is written", func(u *upgrade) {
			u.invalidate()
			u.bootFiles()
			u.arm()
			u.root()
		}, "slot b starts with the kernel of new and another root"},
		{"root not flushed before arm", func(u *upgrade) {
			u.invalidate()
			u.write(partition.RootB, 0, root("new"), 64<<10)
			u.write(partition.BootB, 0, u.boot, 64<<10)
			u.arm()
		}, "another root"},
		{"running root overwritten", func(u *upgrade) {
			u.write(partition.RootA, 0, root("new"), 64<<10)
			u.sync()
		}, "slot a starts with the kernel of old and another root"},
		{"slot that is on trial written again", func(u *upgrade) {
			u.invalidate()
			u.root()
			u.bootFiles()
			u.arm()
			u.write(partition.RootB, 4096, make([]byte, 4096), 4096)
			u.sync()
		}, "slot b starts with the kernel of new and another root"},
		{"state files made anew", func(u *upgrade) {
			u.invalidate()
			u.root()
			u.bootFiles()
			u.arm()
			u.confirm()
			u.phase("confirmed")
			u.remake(slot.State{Seq: 4, Confirmed: slot.B, Trial: slot.None})
		}, "invalid slot state"},
		{"both copies at once, by a write that stops in the middle", func(u *upgrade) {
			// What a program leaves that zeroes first and writes then.
			for _, zero := range []bool{true, false} {
				for _, name := range disk.StateFiles {
					data := make([]byte, slot.Size)
					if !zero {
						data, _ = slot.State{Seq: 2, Confirmed: slot.A, Trial: slot.B, Tries: 3}.Encode()
					}
					u.must(u.system.Overwrite(name, data))
				}
			}
		}, "STUCK"},
		{"partition table written by halves", func(u *upgrade) {
			table := make([]byte, 512)
			_, err := u.disk.ReadAt(table, 512)
			u.must(err)
			for _, at := range []int64{512, partition.DiskSize(parts()) - 512} {
				_, err = u.disk.WriteAt(make([]byte, 512), at)
				u.must(err)
				u.sync()
			}
		}, "boots NEITHER"},
		{"boot loader of UEFI damaged", func(u *upgrade) {
			u.must(u.system.Overwrite(loaderPath, []byte("grab")))
		}, "UEFI would run a damaged"},
		{"GRUB's core overwritten", func(u *upgrade) {
			u.write(partition.BIOS, 0, []byte("x"), 1)
		}, "core image"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpgrade(t)
			tt.do(u)
			rec, o := u.record()
			o.Samples = 32
			r := sweep(t, rec, o)
			if r.Bad() == 0 || len(r.Failures) == 0 {
				t.Fatalf("not caught:\n%s", r)
			}
			found := false
			for _, f := range r.Failures {
				found = found || strings.Contains(f.Why, tt.want)
				v, err := Judge(rec, o, f.State)
				if err != nil || !strings.Contains(f.Why, v.Why) {
					t.Errorf("judged again: %v, %v; want %s", v, err, f)
				}
			}
			if !found {
				t.Errorf("no failure says %q", tt.want)
			}
			t.Logf("%d of %d states; %s", r.Bad(), r.Total().States, r.Failures[0])
		})
	}
}

// TestForbidden shows that a slot which flips in a phase that forbids it fails.
func TestForbidden(t *testing.T) {
	u := newUpgrade(t)
	u.invalidate()
	u.root()
	u.bootFiles()
	u.arm()
	u.phase("armed")
	_, err := u.store.RollBack()
	u.must(err)
	u.phase("rolled back")
	rec, o := u.record()
	rec.Phases[0].Boots, rec.Phases[1].Boots = nil, []string{"old"}
	if r := sweep(t, rec, o); r.Bad() != 0 {
		t.Errorf("a roll-back fails:\n%s", r)
	}
	rec.Phases[1].Boots = []string{"new"}
	if r := sweep(t, rec, o); r.Total().Forbidden != 1 || r.Bad() != 1 {
		t.Errorf("a phase that allows only the new version:\n%s", r)
	}
}

// TestPickAndMake makes picked states as whole disks and judges these.
func TestPickAndMake(t *testing.T) {
	u := newUpgrade(t)
	u.invalidate()
	u.root()
	u.bootFiles()
	u.arm()
	rec, o := u.record()
	states, err := Pick(rec, o, 4)
	if err != nil || len(states) != 4 {
		t.Fatalf("picked %v, %v", states, err)
	}
	if again, err := Pick(rec, o, 4); err != nil || !slices.Equal(states, again) {
		t.Errorf("picked %v, %v the second time; want %v", again, err, states)
	}
	for _, s := range append(states, base(), State{Epoch: states[3].Epoch, Choice: "prefix:1"}) {
		want, err := Judge(rec, o, s)
		if err != nil {
			t.Fatal(err)
		}
		made := filepath.Join(t.TempDir(), "made.img")
		if err := disk.Copy(u.image, made); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(made, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Make(rec, o, s, f), f.Close()); err != nil {
			t.Fatal(err)
		}
		one, done, err := Open(made, os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Judge(*one, o, base()); err != nil || got != want {
			t.Errorf("state %s made: %v, %v; want %v", s, got, err, want)
		}
		if err := done(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []State{{99, "prefix:0"}, {1, "prefix:99"}, {1, "nonsense"}} {
		if v, err := Judge(rec, o, s); err == nil {
			t.Errorf("judged %s: %v", s, v)
		}
	}
}

// TestSameSeedSameReport also shows that the workers' shares add up.
func TestSameSeedSameReport(t *testing.T) {
	u := newUpgrade(t)
	u.invalidate()
	u.bootFiles()
	u.arm()
	u.root()
	rec, o := u.record()
	var reports []Report
	for _, workers := range []int{1, 3} {
		o.Workers, o.Failures = workers, 1<<20
		passed := 0
		o.Progress = func(n, all int) { passed = n }
		r := sweep(t, rec, o)
		if passed != len(rec.Entries) {
			t.Errorf("progress ended at %d of %d", passed, len(rec.Entries))
		}
		r.Time, r.Workers, r.Starts = 0, 0, 0
		reports = append(reports, r)
	}
	if reports[0].Bad() == 0 || reports[0].String() != reports[1].String() {
		t.Errorf("one worker found\n%.500s\nthree\n%.500s", reports[0], reports[1])
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Sweep(ctx, rec, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
