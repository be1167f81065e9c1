package early

import (
	"errors"
	"log"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/init/internal/entry"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/google/go-cmp/cmp"
)

func TestMounts(t *testing.T) {
	var got []string
	for _, m := range Mounts() {
		got = append(got, m.String())
	}
	want := []string{
		"devtmpfs /dev devtmpfs nosuid,mode=0755",
		"proc /proc proc nosuid,nodev,noexec",
		"sysfs /sys sysfs nosuid,nodev,noexec",
		"tmpfs /run tmpfs nosuid,nodev,mode=0755",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Mounts (-want +got):\n%s", diff)
	}
}

// TestRunWithoutEntry ends before anything of the machine is touched.
func TestRunWithoutEntry(t *testing.T) {
	var out strings.Builder
	err := Run(t.Context(), log.New(&out, "", 0), cmdline.Parse("panic=10 cairn.slot=a"), nil)
	var failed *sequence.Error
	if !errors.Is(err, entry.ErrMissing) || !errors.As(err, &failed) || failed.Phase != "boot entry" {
		t.Errorf("Run() = %v; want ErrMissing in phase boot entry", err)
	}
	if !strings.Contains(out.String(), "phase 1/5 boot entry") {
		t.Errorf("the console said %q", out.String())
	}
}
