package feeder

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a plain file, which records what is written and knows no ioctl.
func fake(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "watchdog")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// arm begins feeding; the first one has happened when it returns.
func arm(t *testing.T, path string) *Feeder {
	t.Helper()
	f := New(t.Logf, path)
	if found, err := f.Arm(); !found || err != nil {
		t.Fatalf("Arm() = %v, %v; want a watchdog", found, err)
	}
	synctest.Wait()
	return f
}

// TestFeeding goes by a fake clock through what may end the feeding. A quarter of the timeout is 15 s.
func TestFeeding(t *testing.T) {
	sick := errors.New("the supervisor is stuck")
	for name, tt := range map[string]struct {
		do   func(f *Feeder)
		want string // what the device got in two minutes after do
	}{
		"nothing":               {func(*Feeder) {}, "11111111"},
		"sick":                  {func(f *Feeder) { f.Ask(func() error { return sick }) }, ""},
		"a shutdown that hangs": {func(f *Feeder) { f.EndAfter(50 * time.Second) }, "111"},
		"stop":                  {func(f *Feeder) { f.Stop() }, ""},
		"stop twice and resume": {func(f *Feeder) { f.Stop(); f.Stop(); f.Resume(); f.Resume() }, "111111111"},
		"hand on": {func(f *Feeder) {
			if err := f.HandOn(); err != nil {
				t.Error(err)
			}
		}, "1"},
		"disarm": {func(f *Feeder) {
			if err := f.Disarm(); err != nil {
				t.Error(err)
			}
			f.Resume()
		}, "V"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := fake(t)
				f := arm(t, path)
				tt.do(f)
				time.Sleep(2*time.Minute + time.Second)
				f.Stop()
				if got := strings.TrimPrefix(content(t, path), "1"); got != tt.want {
					t.Errorf("the watchdog got %q; want %q", got, tt.want)
				}
			})
		})
	}
}

// TestHandOver: what one stage armed, the next one feeds, and never lets go in between.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := fake(t)
		early := arm(t, path)
		defer early.Stop()
		if s := early.Status(); s == nil || s.TimeoutS != 60 {
			t.Errorf("Status() = %+v; want the timeout of 60 s", s)
		}
		if err := early.HandOn(); err != nil {
			t.Fatal(err)
		}
		// Another one at the same device would be EBUSY: that it is the very descriptor shows in the offset, which a
		// second open would have of its own.
		system := arm(t, path)
		defer system.Stop()
		if got := content(t, path); got != "111" {
			t.Errorf("the watchdog got %q; want 111 and no disarming", got)
		}
	})
}

func TestNone(t *testing.T) {
	f := New(t.Logf, filepath.Join(t.TempDir(), "none"))
	for _, f := range []*Feeder{f, nil} {
		if found, err := f.Arm(); found || err != nil {
			t.Errorf("Arm() = %v, %v; want none and no error", found, err)
		}
		f.Ask(nil)
		f.EndAfter(0)
		f.Resume()
		if err := errors.Join(f.HandOn(), f.Disarm()); err != nil || f.Status() != nil || f.String() != "no watchdog" {
			t.Errorf("%v, %v, %v; want nothing", err, f.Status(), f)
		}
	}
}
