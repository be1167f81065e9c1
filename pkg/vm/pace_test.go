package vm

import (
	"slices"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	since := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	eighth := Pace{factor: 8, since: since, library: "/lib/x.so"}
	for _, tt := range []struct {
		pace Pace
		real time.Duration
		want time.Duration
	}{{eighth, 0, 0}, {eighth, 8 * time.Second, time.Second}, {Pace{}, 8 * time.Second, 8 * time.Second}} {
		if got := tt.pace.At(since.Add(tt.real)); !got.Equal(since.Add(tt.want)) {
			t.Errorf("%v: At(%v) = %v; want %v", tt.pace, tt.real, got.Sub(since), tt.want)
		}
		if got := tt.pace.Machines(tt.real); got != tt.want || tt.pace.Real(got) != tt.real {
			t.Errorf("%v: %v is %v to the machines; want %v and back", tt.pace, tt.real, got, tt.want)
		}
	}
	if want := []string{"LD_PRELOAD=/lib/x.so", "FAKETIME=+0 x0.125"}; !slices.Equal(eighth.environment(), want) {
		t.Errorf("environment %q; want %q", eighth.environment(), want)
	}
	if p, err := NewPace(t.Context(), 0); err == nil {
		t.Errorf("a pace of 1/0 is %v; want an error", p)
	}
	if p, err := NewPace(t.Context(), 1); err != nil || p != (Pace{}) {
		t.Errorf("a pace of 1/1 is %v, %v; want real time", p, err)
	}
}
