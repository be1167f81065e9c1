package health

import (
	"encoding/json"
	"testing"
	"time"
)

// sight is what is seen from a time on, until the next one.
type sight struct {
	from time.Duration
	s    Sight
}

func TestWatch(t *testing.T) {
	const minute, hour = time.Minute, time.Hour
	policy := Policy{Alarm: 5 * minute, Steady: 2 * minute, Reboot: 20 * minute, Quiet: 30 * minute, Forget: 24 * hour}
	never := policy
	never.Reboot = 0
	well, here, far := Sight{Healthy: true}, Sight{Here: true}, Sight{}
	busy := Sight{Here: true, Busy: true}
	type done struct {
		at time.Duration
		a  Action
	}
	for _, tt := range []struct {
		name     string
		p        Policy
		rebooted bool
		sights   []sight
		until    time.Duration
		want     []done
		after    bool // Rebooted
	}{
		{"well", policy, false, []sight{{0, well}}, 30 * hour, nil, false},
		{"a short failure", policy, false, []sight{{0, well}, {hour, here}, {hour + 4*minute, well}}, 3 * hour, nil, false},
		{"alarm and all clear", policy, false, []sight{{0, well}, {hour, here}, {hour + 10*minute, well}}, 3 * hour, []done{{hour + 5*minute, Alarm}, {hour + 12*minute, AllClear}}, false},
		{"reboot", policy, false, []sight{{0, well}, {hour, here}}, hour + 20*minute, []done{{hour + 5*minute, Alarm}, {hour + 20*minute, Reboot}}, true},
		{"one reboot only", policy, true, []sight{{0, here}}, 20 * hour, []done{{5 * minute, Alarm}}, true},
		{"not soon after power-on", policy, false, []sight{{0, here}}, 30 * minute, []done{{5 * minute, Alarm}, {30 * minute, Reboot}}, true},
		{"never", never, false, []sight{{0, here}}, 20 * hour, []done{{5 * minute, Alarm}}, false},
		{"its cause is elsewhere", policy, false, []sight{{0, far}}, 20 * hour, []done{{5 * minute, Alarm}}, false},
		{"its cause comes here", policy, false, []sight{{0, far}, {hour, here}}, hour + 20*minute, []done{{5 * minute, Alarm}, {hour + 20*minute, Reboot}}, true},
		{"its cause goes", policy, false, []sight{{0, here}, {15 * minute, far}, {25 * minute, here}}, 45 * minute, []done{{5 * minute, Alarm}, {45 * minute, Reboot}}, true},
		{"busy", policy, false, []sight{{0, busy}, {hour, here}}, hour, []done{{5 * minute, Alarm}, {hour, Reboot}}, true},
		{
			"flapping", policy, false, []sight{{0, well}, {hour, here}, {hour + 3*minute, well}, {hour + 4*minute, here}, {hour + 7*minute, well}, {hour + 8*minute, here}},
			hour + 20*minute, []done{{hour + 5*minute, Alarm}, {hour + 20*minute, Reboot}}, true,
		},
		{"a day well", policy, true, []sight{{0, well}}, 24 * hour, nil, false},
		{"not quite a day", policy, true, []sight{{0, well}, {23 * hour, here}, {23*hour + minute, well}}, 46 * hour, nil, true},
		{
			"well for a day, and then again", policy, true, []sight{{0, here}, {hour, well}, {26 * hour, here}}, 26*hour + 20*minute,
			[]done{{5 * minute, Alarm}, {hour + 2*minute, AllClear}, {26*hour + 5*minute, Alarm}, {26*hour + 20*minute, Reboot}}, true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := Watch{Rebooted: tt.rebooted}
			var got []done
			for at := time.Duration(0); at <= tt.until; at += 30 * time.Second {
				var now Sight
				for _, s := range tt.sights {
					if at >= s.from {
						now = s.s
					}
				}
				var a Action
				was := w.Rebooted
				if w, a = w.Next(tt.p, now, at); a != Nothing {
					got = append(got, done{at, a})
				}
				if (a == Reboot) != (w.Rebooted && !was) {
					t.Errorf("at %s: %s, and Rebooted went from %v to %v", at, a, was, w.Rebooted)
				}
			}
			if len(got) != len(tt.want) || w.Rebooted != tt.after {
				t.Fatalf("did %v, Rebooted %v; want %v, %v", got, w.Rebooted, tt.want, tt.after)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("did %v; want %v", got, tt.want)
				}
			}
		})
	}
}

func TestWatchJSON(t *testing.T) {
	w, _ := Watch{Rebooted: true}.Next(DefaultPolicy("till-1"), Sight{}, time.Hour)
	text, err := json.Marshal(w)
	if err != nil || string(text) != `{"rebooted":true}` {
		t.Errorf("JSON %s, %v", text, err)
	}
	var back Watch
	if err := json.Unmarshal(text, &back); err != nil || back != (Watch{Rebooted: true}) {
		t.Errorf("read back %+v, %v", back, err)
	}
}

func TestSee(t *testing.T) {
	for _, tt := range []struct {
		checks []Check
		want   Sight
	}{
		{[]Check{{OK: true}, {OK: true}}, Sight{Healthy: true}},
		{[]Check{{OK: true}, {Remote: true}}, Sight{}},
		{[]Check{{Remote: true}, {}}, Sight{Here: true}},
	} {
		if got := See(tt.checks); got != tt.want {
			t.Errorf("See(%v) = %v; want %v", tt.checks, got, tt.want)
		}
	}
}

// TestDefaultPolicy: the machines of a shop do not restart at the same time.
func TestDefaultPolicy(t *testing.T) {
	times := map[time.Duration]bool{}
	for _, name := range []string{"till-1", "till-2", "till-3", "office", "scale"} {
		p := DefaultPolicy(name)
		if p != DefaultPolicy(name) || p.Reboot < 20*time.Minute || p.Reboot >= 50*time.Minute || p.Alarm >= p.Reboot {
			t.Errorf("policy of %s: %+v", name, p)
		}
		times[p.Reboot.Truncate(time.Minute)] = true
	}
	if len(times) < 4 {
		t.Errorf("5 machines restart at only %d different minutes", len(times))
	}
}
