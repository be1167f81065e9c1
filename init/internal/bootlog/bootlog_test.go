package bootlog

import (
	"testing"

	"github.com/cairn-os/cairn/pkg/status"
	"github.com/google/go-cmp/cmp"
)

func TestSaveLoad(t *testing.T) {
	root := t.TempDir()
	if got, err := Load(root); got != nil || err != nil {
		t.Errorf("Load() without an early stage = %v, %v; want nothing", got, err)
	}
	want := []status.Phase{{Name: "mounts", StartS: 1.5, DurationS: 0.003}, {Name: "disk", StartS: 1.6, Error: "x"}}
	if err := Save(root, want); err != nil {
		t.Fatal(err)
	}
	got, err := Load(root)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Load() error %v (-want +got):\n%s", err, diff)
	}
}

func TestSincePowerOn(t *testing.T) {
	if a, b := SincePowerOn(), SincePowerOn(); a <= 0 || b < a {
		t.Errorf("SincePowerOn() = %v, then %v; want it to grow", a, b)
	}
}
