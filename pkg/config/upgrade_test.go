package config

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/cmdline"
)

const (
	wantSource = "want https://HOST/PATH or http://HOST/PATH of a release directory, or file:///PATH of one on the machine, and nothing after it"
	wantRate   = "want how much per second, at least 1kB, such as 500KiB, 2MB or 1.5Mbit"
)

var badUpgrade = []struct{ name, text, want string }{
	{"upgrade key", "cairn: {upgrade: {chanel: stable}}\n", "1: cairn.upgrade.chanel: unknown key; did you mean channel?"},
	{"source", "cairn:\n  upgrade:\n    source: ftp://u:hunter2@a\n", "3: cairn.upgrade.source: " + wantSource},
	{"source without host", "cairn: {upgrade: {source: 'https:///hunter2'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"source with query", "cairn: {upgrade: {source: 'https://a/b?token=hunter2'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"source with bad user", "cairn: {upgrade: {source: 'https://u:hunter2%zz@a/b'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"file of a host", "cairn: {upgrade: {source: 'file://stick/cairn'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"relative file", "cairn: {upgrade: {source: 'file:cairn'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"source port", "cairn: {upgrade: {source: 'http://a:0/'}}\n", "1: cairn.upgrade.source: " + wantSource},
	{"channel", "cairn: {upgrade: {channel: ../a}}\n", `1: cairn.upgrade.channel: want the name of a channel such as stable: at most 32 lower-case letters, digits and -, got "../a"`},
	{"auto without source", "cairn:\n  upgrade:\n    auto: true\n", "3: cairn.upgrade.auto: upgrading without being told needs cairn.upgrade.source as well, where releases come from"},
	{"interval", "cairn: {upgrade: {interval: 1m}}\n", `1: cairn.upgrade.interval: want a time such as 6h, at least 5m and at most 720h, got "1m"`},
	{"rate", "cairn: {upgrade: {rate_limit: 500}}\n", "1: cairn.upgrade.rate_limit: " + wantRate + `, got "500"`},
	{"rate 0", "cairn: {upgrade: {rate_limit: 0kB}}\n", "1: cairn.upgrade.rate_limit: " + wantRate + `, got "0kB"`},
	{"window empty day", "cairn: {upgrade: {window: {days: [], start: 25:00, duration: 3h}}}\n", `1: cairn.upgrade.window.start: want a time of day in UTC such as 02:00, got "25:00"`},
	{"window day", "cairn: {upgrade: {window: {days: [monday], start: 02:00, duration: 3h}}}\n", `1: cairn.upgrade.window.days[0]: want mon, tue, wed, thu, fri, sat or sun, got "monday"`},
	{"window days", "cairn: {upgrade: {window: {days: [mon, mon], start: 02:00, duration: 3h}}}\n", "1: cairn.upgrade.window.days[1]: mon is given twice"},
	{"window without duration", "cairn:\n  upgrade:\n    window: {days: [mon], start: '02:00'}\n", "3: cairn.upgrade.window: want start, the time of day, and duration; days may be left out"},
	{"window too long", "cairn: {upgrade: {window: {start: 02:00, duration: 25h}}}\n", `1: cairn.upgrade.window.duration: want a time such as 3h, at least 10m and at most 24h, got "25h"`},
}

func TestUpgradeDefaults(t *testing.T) {
	var u Upgrade
	if u.EffectiveChannel() != "stable" || u.Interval() != 6*time.Hour || u.RateLimit() != 0 || u.ShownSource() != "" || !u.Window.Open(time.Time{}) {
		t.Errorf("defaults: channel %s, interval %s, rate limit %d, source %q", u.EffectiveChannel(), u.Interval(), u.RateLimit(), u.ShownSource())
	}
	u = wantFull.Cairn.Upgrade
	if u.EffectiveChannel() != "edge" || u.Interval() != 12*time.Hour || u.RateLimit() != 187_500 || u.Window.Duration() != 3*time.Hour {
		t.Errorf("given: channel %s, interval %s, rate limit %d, window %s", u.EffectiveChannel(), u.Interval(), u.RateLimit(), u.Window.Duration())
	}
}

func TestSource(t *testing.T) {
	for v, shown := range map[string]string{
		"https://updates.example.com/cairn/":     "https://updates.example.com/cairn/",
		"https://till:hunter2@a.example/x":       "https://a.example/x",
		"http://[fd00::1]:8080":                  "http://[fd00::1]:8080",
		"file:///media/usb/release":              "file:///media/usb/release",
		"http://10.0.0.2":                        "http://10.0.0.2",
		"https://hunter2@a.example:8443/a%20b/c": "https://a.example:8443/a%20b/c",
	} {
		if message := source(v); message != "" {
			t.Errorf("source(%q) = %q; want it good", v, message)
		}
		if got := (Upgrade{Source: v}).ShownSource(); got != shown {
			t.Errorf("ShownSource of %q = %q; want %q", v, got, shown)
		}
	}
	for v, shown := range map[string]string{"https://u:hunter2%zz@a": "", "https://a/?token=hunter2#hunter2": "https://a/"} {
		if got := (Upgrade{Source: v}).ShownSource(); got != shown {
			t.Errorf("ShownSource of %q = %q; want %q", v, got, shown)
		}
	}
}

func TestRate(t *testing.T) {
	for v, want := range map[string]int64{
		"500KiB": 512_000, "500KB": 500_000, "500 kB": 500_000, "2MB": 2_000_000, "2MiB/s": 2 << 20, "1Mbit": 125_000, "1.5Mbit/s": 187_500,
		"64kbit": 8_000, "8Kbit": 1_000, "1GB": 1e9, "0.5GiB": 1 << 29, "1000B": 1_000, "1.234kB": 1_234, "100GB": 100e9,
	} {
		if got := (Upgrade{RateLimitText: v}).RateLimit(); got != want || rate(v) != "" {
			t.Errorf("rate %q = %d, %q; want %d", v, got, rate(v), want)
		}
	}
	for _, v := range []string{"", "0", "1", "999B", "7kbit", "-1MB", "1,5MB", "1mB", "1Mb", "1MiBs", "1 MB ", "1.2345MB", "999999999GB", "101GB", "9999999999B", "1e3MB", "MB", ".5MB"} {
		if rate(v) == "" {
			t.Errorf("rate %q is taken, as %d", v, (Upgrade{RateLimitText: v}).RateLimit())
		}
	}
}

func FuzzRate(f *testing.F) {
	for _, v := range []string{"500KiB", "1.5Mbit/s", "999999999GiB", "0.001kB", "100 GB"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if n := (Upgrade{RateLimitText: v}).RateLimit(); rate(v) == "" && (n < minRate || n > maxRate) || rate(v) != "" && n != 0 {
			t.Errorf("rate %q = %d", v, n)
		}
	})
}

func TestWindow(t *testing.T) {
	at := func(text string) time.Time {
		t.Helper()
		v, err := time.Parse("Mon 2006-01-02 15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(text, v.Weekday().String()[:3]) {
			t.Fatalf("%s is a %s", text, v.Weekday())
		}
		return v
	}
	night := Window{Days: []string{"mon", "thu"}, Start: "22:30", DurationText: "3h"}
	for _, tt := range []struct {
		w         Window
		now, next string // next "": open
	}{
		{Window{}, "Sun 2026-11-22 12:00:00", ""},
		{night, "Sun 2026-11-22 12:00:00", "Mon 2026-11-23 22:30:00"},
		{night, "Mon 2026-11-23 22:29:59", "Mon 2026-11-23 22:30:00"},
		{night, "Mon 2026-11-23 22:30:00", ""},
		{night, "Tue 2026-11-24 01:29:59", ""},
		{night, "Tue 2026-11-24 01:30:00", "Thu 2026-11-26 22:30:00"},
		{night, "Tue 2026-11-24 22:45:00", "Thu 2026-11-26 22:30:00"},
		{night, "Fri 2026-11-27 01:30:00", "Mon 2026-11-30 22:30:00"},
		{Window{Days: []string{"sun"}, Start: "00:00", DurationText: "10m"}, "Sun 2026-11-22 00:10:00", "Sun 2026-11-29 00:00:00"},
		{Window{Days: []string{"sat"}, Start: "23:59", DurationText: "24h"}, "Sun 2026-11-22 23:58:59", ""},
		{Window{Start: "00:00", DurationText: "24h"}, "Sun 2026-11-22 23:59:59", ""},
		{Window{Start: "02:00", DurationText: "3h"}, "Sun 2026-11-22 05:00:00", "Mon 2026-11-23 02:00:00"},
		{Window{Start: "02:00", DurationText: "3h"}, "Thu 2026-12-31 23:00:00", "Fri 2027-01-01 02:00:00"},
	} {
		now := at(tt.now)
		want := now
		if tt.next != "" {
			want = at(tt.next)
		}
		if open, next := tt.w.Open(now), tt.w.Next(now); open != (tt.next == "") || !next.Equal(want) {
			t.Errorf("%v at %s: open %v, next %s; want %v, %s", tt.w, tt.now, open, next, tt.next == "", want)
		}
		elsewhere := now.In(time.FixedZone("", 9*3600)) // the same moment
		if tt.w.Open(elsewhere) != tt.w.Open(now) || !tt.w.Next(elsewhere).Equal(want) {
			t.Errorf("%v at %s differs from %s", tt.w, elsewhere, tt.now)
		}
	}
}

// TestWindowProperties compares random windows with a week of minutes painted by hand.
func TestWindowProperties(t *testing.T) {
	const week = 7 * 24 * 60
	sunday := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	names := []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		var days []string
		for _, name := range names {
			if r.IntN(3) == 0 {
				days = append(days, name)
			}
		}
		start, long := r.IntN(24*60), 10+r.IntN(24*60-9)
		w := Window{Days: days, Start: fmt.Sprintf("%02d:%02d", start/60, start%60), DurationText: fmt.Sprintf("%dm", long)}
		text := fmt.Sprintf("cairn: {upgrade: {window: {days: [%s], start: %s, duration: %s}}}", strings.Join(days, ","), w.Start, w.DurationText)
		if _, err := Parse("f", []byte(text)); err != nil {
			t.Fatal(err)
		}
		var open [week]bool
		for d, name := range names {
			if len(days) > 0 && !slices.Contains(days, name) {
				continue
			}
			for m := range long {
				open[(d*24*60+start+m)%week] = true
			}
		}
		for range 60 {
			minute, second := r.IntN(week), r.IntN(60)
			now := sunday.AddDate(0, 0, 7*(r.IntN(200)-100)).Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second)
			if w.Open(now) != open[minute] {
				t.Fatalf("seed %d: %v at %s: open %v; want %v", seed, w, now, w.Open(now), open[minute])
			}
			wait := 0
			for !open[(minute+wait)%week] {
				wait++
			}
			want := now
			if wait > 0 {
				want = now.Truncate(time.Minute).Add(time.Duration(wait) * time.Minute)
			}
			if next := w.Next(now); !next.Equal(want) || !w.Open(next) {
				t.Fatalf("seed %d: %v at %s: next %s; want %s", seed, w, now, next, want)
			}
		}
	}
}

// TestUpgradeMerge: a window is one decision, everything else merges; the kernel command line can give both.
func TestUpgradeMerge(t *testing.T) {
	c, text, err := Merge([]Source{
		{Name: "a", Data: []byte("cairn: {upgrade: {source: 'file:///a', window: {days: [mon], start: '02:00', duration: 3h}, channel: edge}, health: {settle: 5m}}\n")},
		{Name: "b", Data: []byte("cairn: {upgrade: {window: {start: '04:00', duration: 1h}, auto: true}, health: {probes: [{name: a, tcp: 'a:1'}]}}\n")},
		CommandLine(cmdline.Parse("cairn.upgrade.rate_limit=2MB cairn.health.deadline=20m")),
	})
	want := &Config{Cairn: Cairn{
		Upgrade: Upgrade{Source: "file:///a", Channel: "edge", Auto: true, Window: Window{Start: "04:00", DurationText: "1h"}, RateLimitText: "2MB"},
		Health:  Health{DeadlineText: "20m", SettleText: "5m", Probes: []Probe{{Name: "a", TCP: "a:1"}}},
	}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Fatal(err, diff)
	}
	again, err := Parse("merged", text)
	if diff := cmp.Diff(want, again); diff != "" || err != nil {
		t.Errorf("%v %s of\n%s", err, diff, text)
	}
	if !strings.Contains(string(text), "# b:1\n    window:\n") {
		t.Errorf("the window's source is not told in\n%s", text)
	}
	c, _, err = Merge([]Source{CommandLine(cmdline.Parse("cairn.upgrade.window.start=02:00 cairn.upgrade.window.duration=3h cairn.upgrade.window.days=mon cairn.upgrade.window.days=tue"))})
	want = &Config{Cairn: Cairn{Upgrade: Upgrade{Window: Window{Days: []string{"mon", "tue"}, Start: "02:00", DurationText: "3h"}}}}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(err, diff)
	}
	_, _, err = Merge([]Source{
		{Name: "a", Data: []byte("cairn: {health: {settle: 5m}}\n")}, {Name: "b", Data: []byte("cairn:\n  health:\n    deadline: 5m\n")},
	})
	if want := "a:1: cairn.health.settle: want settle to end at least 30s before the deadline; they are 5m0s and 5m0s"; err == nil || err.Error() != want {
		t.Errorf("error = %v; want %s", err, want)
	}
}
