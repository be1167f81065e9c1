package main

import (
	"testing"
	"time"
)

func TestBeganAt(t *testing.T) {
	known := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name   string
		now    time.Time
		known  time.Time
		uptime time.Duration
		want   bool
	}{
		{"began at the last known time", known.Add(40 * time.Second), known, 30 * time.Second, true},
		{"hours of uptime since", known.Add(5 * time.Hour), known, 5 * time.Hour, true},
		{"a clock with a battery", known.Add(3 * 24 * time.Hour), known, time.Minute, false},
		{"behind what is known", known.Add(-time.Hour), known, time.Minute, true},
		{"nothing known", known, time.Time{}, time.Minute, false},
	} {
		if got := beganAt(tt.now, tt.known, tt.uptime); got != tt.want {
			t.Errorf("%s: beganAt = %t; want %t", tt.name, got, tt.want)
		}
	}
}
