package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/config"
)

// script is what a check finds from a time on, since the begin.
type script []step

type step struct {
	from  time.Duration
	f     Finding
	lasts time.Duration // of the look
	deaf  bool          // does not heed its context
}

var ok = Finding{OK: true, Text: "fine"}

func bad(text string) Finding { return Finding{Text: text} }

func (s script) look(name string) Look {
	begin := time.Now()
	return Look{Name: name, Do: func(ctx context.Context) Finding {
		now := s[0]
		for _, one := range s {
			if time.Since(begin) >= one.from {
				now = one
			}
		}
		done := ctx.Done()
		if now.deaf {
			done = nil
		}
		select {
		case <-done:
			return bad("cut off, and says so")
		case <-time.After(now.lasts):
		}
		return now.f
	}}
}

// transcript runs a trial by the fake clock and writes down what is told, and when.
func transcript(t *testing.T, settle, left time.Duration, checks map[string]script, names ...string) string {
	var b strings.Builder
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		at := func() string { return fmt.Sprintf("%6.1f ", time.Since(begin).Seconds()) }
		opt := Options{
			Health: config.Health{SettleText: settle.String()},
			Uptime: func() time.Duration { return 60*time.Second + time.Since(begin) },
			Progress: func(p Progress) {
				if want := left - time.Since(begin); p.Left != want || len(p.Checks) != len(names) {
					t.Errorf("progress says %s left and %d checks; want %s and %d", p.Left, len(p.Checks), want, len(names))
				}
				fmt.Fprintln(&b, at()+p.Text)
			},
		}
		for i, name := range names {
			for at := range checks[name] { // no two looks end at the same time
				checks[name][at].lasts += time.Duration(i) * time.Millisecond
			}
			opt.More = append(opt.More, checks[name].look(name))
		}
		j, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		v, err := j.Run(t.Context(), left)
		if err != nil {
			t.Fatal(err)
		}
		if !v.At.Equal(time.Now()) || v.Uptime.Duration() != 60*time.Second+time.Since(begin) {
			t.Errorf("verdict of %s, %s after power-on; want %s, %s", v.At, v.Uptime, time.Now(), time.Minute+time.Since(begin))
		}
		fmt.Fprintf(&b, "%shealthy %v: %s\n", at(), v.Healthy, v.Reason)
		for _, c := range v.Evidence {
			fmt.Fprintf(&b, "  %s %v since %s, %d of %d failed: %s", c.Name, c.OK, c.Since, c.Failures, c.Looks, c.Text)
			if c.Failed != "" {
				fmt.Fprintf(&b, " (%s)", c.Failed)
			}
			fmt.Fprintln(&b)
		}
		time.Sleep(24 * time.Hour) // lets what hangs end
	})
	return b.String()
}

func TestRun(t *testing.T) {
	const minute = time.Minute
	always := script{{f: ok}}
	for _, tt := range []struct {
		name         string
		settle, left time.Duration
		a, b         script
		want         string
	}{
		{"healthy", 30 * time.Second, 9 * minute, always, script{{f: bad("starting")}, {from: 12 * time.Second, f: ok}}, `
   0.0 waiting for: b: starting
  15.0 all 2 checks pass; healthy once they have for 30s
  50.0 healthy true: all 2 checks pass, and did for 30s without a break
  a true since 60.0s, 0 of 11 failed: fine
  b true since 75.0s, 3 of 11 failed: fine (starting)
`},
		{"healthy, the first one late", 30 * time.Second, 9 * minute, script{{f: bad("starting")}, {from: 12 * time.Second, f: ok}}, always, `
   0.0 waiting for: a: starting
  15.0 all 2 checks pass; healthy once they have for 30s
  45.0 healthy true: all 2 checks pass, and did for 30s without a break
  a true since 75.0s, 3 of 10 failed: fine (starting)
  b true since 60.0s, 0 of 10 failed: fine
`},
		{"at once", 0, 9 * minute, always, always, `
   0.0 all 2 checks pass; healthy once they have for 0s
   5.0 healthy true: all 2 checks pass, and did for 0s without a break
  a true since 60.0s, 0 of 2 failed: fine
  b true since 60.0s, 0 of 2 failed: fine
`},
		{"a break begins it anew", 20 * time.Second, 9 * minute, always, script{{f: ok}, {from: 17 * time.Second, f: bad("fell over")}, {from: 22 * time.Second, f: ok}}, `
   0.0 all 2 checks pass; healthy once they have for 20s
  20.0 waiting for: b: fell over
  25.0 all 2 checks pass; healthy once they have for 20s
  50.0 healthy true: all 2 checks pass, and did for 20s without a break
  a true since 60.0s, 0 of 11 failed: fine
  b true since 85.0s, 1 of 11 failed: fine (fell over)
`},
		{
			"flapping", 20 * time.Second, 48 * time.Second, always,
			script{{f: ok}, {from: 14 * time.Second, f: bad("503")}, {from: 16 * time.Second, f: ok}, {from: 29 * time.Second, f: bad("504")}, {from: 34 * time.Second, f: ok}}, `
   0.0 all 2 checks pass; healthy once they have for 20s
  15.0 waiting for: b: 503
  20.0 all 2 checks pass; healthy once they have for 20s
  30.0 waiting for: b: 504
  35.0 all 2 checks pass; healthy once they have for 20s
  48.0 healthy false: not healthy in time: b passes only since 95.0s after power-on and failed 2 times before, the last time with: 504
  a true since 60.0s, 0 of 10 failed: fine
  b true since 95.0s, 2 of 10 failed: fine (504)
`,
		},
		{"deadline", 20 * time.Second, 32 * time.Second, script{{f: bad("NotReady")}, {from: 10 * time.Second, f: bad("NetworkNotReady")}}, always, `
   0.0 waiting for: a: NotReady
  10.0 waiting for: a: NetworkNotReady
  32.0 healthy false: not healthy in time: a: NetworkNotReady
  a false since 60.0s, 7 of 7 failed: NetworkNotReady
  b true since 60.0s, 0 of 7 failed: fine
`},
		{"no time", 20 * time.Second, 0, script{{f: bad("x"), lasts: time.Second}}, script{{f: ok, lasts: time.Second}}, `
   0.0 healthy false: not healthy in time: a: not looked at yet; b: not looked at yet
  a false since 0ms, 0 of 0 failed: not looked at yet
  b false since 0ms, 0 of 0 failed: not looked at yet
`},
		{"good too late", 20 * time.Second, 33 * time.Second, always, script{{f: bad("starting")}, {from: 15 * time.Second, f: ok}}, `
   0.0 waiting for: b: starting
  15.0 all 2 checks pass; healthy once they have for 20s
  33.0 healthy false: not healthy in time: b passes only since 75.0s after power-on and failed 3 times before, the last time with: starting
  a true since 60.0s, 0 of 7 failed: fine
  b true since 75.0s, 3 of 7 failed: fine (starting)
`},
		{"settle longer than what is left", 20 * time.Second, 13 * time.Second, always, always, `
   0.0 all 2 checks pass; healthy once they have for 20s
  13.0 healthy false: not healthy in time: all 2 checks pass, but not for 20s yet
  a true since 60.0s, 0 of 3 failed: fine
  b true since 60.0s, 0 of 3 failed: fine
`},
		{"permanent", 20 * time.Second, 9 * minute, script{{f: bad("later")}}, script{{f: ok}, {from: 4 * time.Second, f: Finding{Text: "no such program", Permanent: true}}}, `
   0.0 waiting for: a: later
   5.0 waiting for: a: later; b: no such program
  10.0 healthy false: cannot become healthy: b: no such program
  a false since 60.0s, 3 of 3 failed: later
  b false since 65.0s, 2 of 3 failed: no such program
`},
		{"permanent for once", 20 * time.Second, 9 * minute, always, script{{f: Finding{Text: "no such program", Permanent: true}}, {from: 3 * time.Second, f: ok}}, `
   0.0 waiting for: b: no such program
   5.0 all 2 checks pass; healthy once they have for 20s
  30.0 healthy true: all 2 checks pass, and did for 20s without a break
  a true since 60.0s, 0 of 7 failed: fine
  b true since 65.0s, 1 of 7 failed: fine (no such program)
`},
		{"hang", 20 * time.Second, 41 * time.Second, always, script{{f: ok}, {from: 4 * time.Second, f: ok, lasts: time.Hour, deaf: true}}, `
   0.0 all 2 checks pass; healthy once they have for 20s
  12.0 waiting for: b: no answer within 5s
  13.0 waiting for: b: hangs: an earlier look has not ended, which may take 5s
  41.0 healthy false: not healthy in time: b: hangs: an earlier look has not ended, which may take 5s
  a true since 60.0s, 0 of 9 failed: fine
  b false since 72.0s, 7 of 8 failed: hangs: an earlier look has not ended, which may take 5s
`},
		{"hang at the begin", 20 * time.Second, 12 * time.Second, always, script{{f: ok, lasts: time.Hour, deaf: true}}, `
   5.0 waiting for: b: not looked at yet
   7.0 waiting for: b: no answer within 5s
   8.0 waiting for: b: hangs: an earlier look has not ended, which may take 5s
  12.0 healthy false: not healthy in time: b: hangs: an earlier look has not ended, which may take 5s
  a true since 60.0s, 0 of 3 failed: fine
  b false since 67.0s, 2 of 2 failed: hangs: an earlier look has not ended, which may take 5s
`},
		{"hang that ends", 10 * time.Second, 5 * minute, always, script{{f: ok, lasts: 31 * time.Second, deaf: true}, {from: 30 * time.Second, f: ok}}, `
   5.0 waiting for: b: not looked at yet
   7.0 waiting for: b: no answer within 5s
   8.0 waiting for: b: hangs: an earlier look has not ended, which may take 5s
  33.0 all 2 checks pass; healthy once they have for 10s
  48.0 healthy true: all 2 checks pass, and did for 10s without a break
  a true since 60.0s, 0 of 10 failed: fine
  b true since 93.0s, 6 of 10 failed: fine (hangs: an earlier look has not ended, which may take 5s)
`},
		{"slow to the end", 10 * time.Second, 34 * time.Second, script{{f: ok, lasts: 10 * time.Millisecond}}, script{{f: ok, lasts: time.Hour}}, `
   5.0 waiting for: b: cut off, and says so
  34.0 healthy false: not healthy in time: b: cut off, and says so
  a true since 60.0s, 0 of 7 failed: fine
  b false since 65.0s, 5 of 5 failed: cut off, and says so
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := transcript(t, tt.settle, tt.left, map[string]script{"a": slices.Clone(tt.a), "b": slices.Clone(tt.b)}, "a", "b")
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), got); diff != "" {
				t.Errorf("%s\n%s", diff, got)
			}
		})
	}
}

// TestRunEnds: without a verdict when its context ends.
func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := New(Options{More: []Look{{Name: "a", Do: func(ctx context.Context) Finding { <-ctx.Done(); return ok }}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if v, err := j.Run(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || v.Evidence != nil {
			t.Errorf("Run() = %+v, %v; want the context's error", v, err)
		}
	})
}

// TestLook: the Judge remembers from look to look, and one that hangs does not hold up the others.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		index := uint64(7)
		j, err := New(Options{
			Store: func(context.Context) (Store, error) {
				return Store{Leader: true, Quorum: true, Voters: 3, Online: 2, Index: index}, nil
			},
			More: []Look{{Name: "hangs", Timeout: time.Second, Do: func(context.Context) Finding { time.Sleep(time.Minute); return ok }}},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []Check{
			{Name: "store", Text: "applied index is not seen to move yet", Looks: 1, Failures: 1},
			{Name: "hangs", Text: "no answer within 1s", Since: 3, Looks: 1, Failures: 1},
		}
		if diff := cmp.Diff(want, j.Look(t.Context())); diff != "" {
			t.Error(diff)
		}
		if time.Since(begin) != 3*time.Second {
			t.Errorf("a look took %s; want the second of its time limit and the two of grace", time.Since(begin))
		}
		time.Sleep(time.Hour)
		index++
		want = []Check{
			{Name: "store", OK: true, Text: "2 of 3 voters online, and the applied index moves", Since: 3603, Looks: 2, Failures: 1, Failed: "applied index is not seen to move yet"},
			{Name: "hangs", Text: "no answer within 1s", Since: 3, Looks: 2, Failures: 2},
		}
		if diff := cmp.Diff(want, j.Look(t.Context())); diff != "" {
			t.Error(diff)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if diff := cmp.Diff(want, j.Look(ended)); diff != "" {
			t.Errorf("after its context ended: %s", diff)
		}
		time.Sleep(time.Hour)
	})
}

func TestNew(t *testing.T) {
	look := Look{Name: "a", Do: func(context.Context) Finding { return ok }}
	for want, opt := range map[string]Options{
		"judge health: nothing to look at":      {},
		"judge health: two checks are called a": {More: []Look{look, look}},
	} {
		if _, err := New(opt); err == nil || err.Error() != want {
			t.Errorf("New() = %v; want %s", err, want)
		}
	}
}

// TestBounded: however much the checks say, what is kept is little, and fit for a console.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opt := Options{}
		for i := range 40 {
			opt.More = append(opt.More, Look{Name: fmt.Sprintf("check %d", i), Do: func(context.Context) Finding {
				return bad(strings.Repeat("\x1b[31mé\n\x00\xff", 100_000))
			}})
		}
		j, err := New(opt)
		if err != nil {
			t.Fatal(err)
		}
		v, err := j.Run(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil || len(text) > 40*(MaxText+200)+MaxReason {
			t.Errorf("%d bytes, %v", len(text), err)
		}
		if !strings.HasSuffix(v.Reason, "...") && !strings.HasSuffix(v.Reason, "; and 37 more") || len(v.Reason) > MaxReason || strings.ContainsAny(v.Reason, "\x1b\n\x00") {
			t.Errorf("reason %q", v.Reason)
		}
		for _, c := range v.Evidence {
			if len(c.Text) > MaxText || !utf8.ValidString(c.Text) || strings.ContainsAny(c.Text, "\x1b\n\x00") {
				t.Fatalf("evidence %q", c.Text)
			}
		}
	})
}

// TestFieldNames pins what is kept on disk.
func TestFieldNames(t *testing.T) {
	v := Verdict{Reason: "r", Evidence: []Check{{Name: "n", Text: "t", Since: 1.5, Looks: 2, Failures: 3, Failed: "f", Permanent: true, Remote: true}}, Uptime: 71.3, At: time.Unix(0, 0).UTC()}
	want := `{"healthy":false,"reason":"r","evidence":[{"name":"n","ok":false,"text":"t","since_s":1.5,"looks":2,"failures":3,"failed":"f","permanent":true,"remote":true}],"at":"1970-01-01T00:00:00Z","uptime_s":71.3}`
	if got, err := json.Marshal(v); err != nil || string(got) != want {
		t.Errorf("JSON\n%s, %v; want\n%s", got, err, want)
	}
}

func FuzzShorten(f *testing.F) {
	f.Add("a\nb\x1b[0m", 5)
	f.Add("ééé", 4)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = max(3, min(most, 1000))
		got := shorten(text, most)
		if len(got) > most || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("shorten(%q, %d) = %q", text, most, got)
		}
	})
}
