package status

import (
	"encoding/json"
	"testing"
	"time"
)

// TestFieldNames pins the stable names: scripts depend on them.
func TestFieldNames(t *testing.T) {
	s := Status{
		Hostname: "till-1", Role: "agent", Server: "10.0.0.2:6443", UptimeS: 80.5, Slot: Slot{Name: "b", State: SlotTrial},
		Trial:     &Trial{TriesLeft: 2, DeadlineS: 600},
		Release:   Release{Version: "1", Kubernetes: "2", Kernel: "3", BuildTime: 4},
		Phases:    []Phase{{Name: "data", StartS: 1, DurationS: 0.038, Skipped: true, Error: "e"}},
		Processes: []Process{{Name: "store", State: "ready", PID: 1, Restarts: 2, StartedS: 3, ReadyS: 4, LastExit: "x", Message: "m", RSSBytes: 5, GroupBytes: 6, GroupPeakBytes: 7, Log: "l"}},
		Addresses: []Address{{Link: "eth0", Prefix: "192.0.2.1/24"}},
		Node:      &Node{Name: "till-1", Ready: true, Reason: "r", Message: "m", Version: "v"},
		Clock:     &Clock{Synchronized: true, Server: "s", OffsetS: 0.5, Error: "e"},
		Timeline:  []Mark{{Name: "node ready", AtS: 71.3}},
		Watchdog:  &Watchdog{Name: "i6300ESB timer", TimeoutS: 60, CausedReset: true},
	}
	want := `{"hostname":"till-1","role":"agent","server":"10.0.0.2:6443","slot":{"name":"b","state":"trial"},"trial":{"tries_left":2,"deadline_s":600},"release":{"version":"1","kubernetes":"2","kernel":"3","build_time":4},` +
		`"uptime_s":80.5,"phases":[{"name":"data","start_s":1,"duration_s":0.038,"skipped":true,"error":"e"}],` +
		`"processes":[{"name":"store","state":"ready","pid":1,"restarts":2,"started_s":3,"ready_s":4,"last_exit":"x","message":"m",` +
		`"rss_bytes":5,"group_bytes":6,"group_peak_bytes":7,"log":"l"}],"addresses":[{"link":"eth0","prefix":"192.0.2.1/24"}],` +
		`"node":{"name":"till-1","ready":true,"reason":"r","message":"m","version":"v"},` +
		`"clock":{"synchronized":true,"server":"s","offset_s":0.5,"error":"e"},"timeline":[{"name":"node ready","at_s":71.3}],` +
		`"watchdog":{"name":"i6300ESB timer","timeout_s":60,"caused_reset":true}}`
	if got, err := json.Marshal(s); err != nil || string(got) != want {
		t.Errorf("JSON\n%s, %v; want\n%s", got, err, want)
	}
	empty := `{"hostname":"","slot":{"name":"","state":""},"release":{"version":"","kubernetes":"","kernel":"","build_time":0},` +
		`"uptime_s":0,"phases":[],"processes":[],"addresses":[],"timeline":[]}`
	if got, err := json.Marshal(Status{}); err != nil || string(got) != empty {
		t.Errorf("empty JSON\n%s, %v; want\n%s", got, err, empty)
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", 38*time.Millisecond + 400*time.Microsecond: "38ms", 2414 * time.Millisecond: "2.41s", 71312 * time.Millisecond: "71.3s",
	} {
		s := InSeconds(d)
		if s.String() != want {
			t.Errorf("InSeconds(%s) = %q; want %q", d, s.String(), want)
		}
		if back := s.Duration(); (back - d).Abs() > time.Millisecond {
			t.Errorf("%s became %s", d, back)
		}
	}
}
