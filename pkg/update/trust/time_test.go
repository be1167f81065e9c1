package trust_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

// wantNewest compares what is kept with t; "" is nothing kept.
func (m *machine) wantNewest(want string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.kept()["newest-time"]); got != want {
		m.t.Errorf("newest-time holds %q; want %q", got, want)
	}
}

const (
	todayText  = "2026-06-01T12:00:00Z"
	expiryText = "2026-07-01T12:00:01Z" // a second after the timestamp expired
)

// TestFreeze: once expired, a directory stays so when the clock is set back.
func TestFreeze(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	m.sees("0.1.0")
	m.wantNewest(todayText)
	m.now = today.Add(31 * day)
	m.refuses(trust.ErrExpired, "this machine's clock")
	m.wantNewest(expiryText)
	for _, measured := range []bool{true, false} {
		m.now, m.measured = today, measured
		m.refuses(trust.ErrExpired, "newest time that this machine has seen")
	}
	m.wantNewest(expiryText)
	// A machine that never saw it while it was good knows as well.
	late := newMachine(t, r)
	late.now = today.Add(31 * day)
	late.refuses(trust.ErrExpired, "timestamp.json")
	late.now = today
	late.refuses(trust.ErrExpired, "timestamp.json")
	// The owner issues it anew.
	r.timestamp.Signed.Expires = today.Add(60 * day)
	r.release("0.2.0", "")
	m.sees("0.2.0")
	late.sees("0.2.0")
}

// TestClockOf1970: a machine without a battery takes what is good, and not what it knows to be expired.
func TestClockOf1970(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	m.now, m.measured = time.Unix(100, 0), false
	m.sees("0.1.0")
	m.wantNewest("2026-05-31T12:00:00Z") // by the manifest's build time
	m.now, m.measured = today, true
	m.sees("0.1.0")
	m.wantNewest(todayText)
	r.timestamp.Signed.Expires = today.Add(-time.Hour)
	r.publish()
	m.now, m.measured = time.Unix(100, 0), false
	m.refuses(trust.ErrExpired, "correct this machine's clock")
	m.wantNewest(todayText)
	// The build time of the running release counts without anything kept.
	fresh := newMachine(t, r)
	fresh.now, fresh.measured, fresh.built = time.Unix(100, 0), false, today
	fresh.refuses(trust.ErrExpired, "newest time that this machine has seen")
}

// TestClockOfTheFuture: a wrong clock refuses while it is wrong; one that a server set, also what was issued before.
func TestClockOfTheFuture(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	m.sees("0.1.0")
	m.measured = false
	for d, file := range map[int]string{100 * 365: "root.json", 40: "timestamp.json"} {
		m.now = today.Add(time.Duration(d) * day)
		m.refuses(trust.ErrExpired, file)
		m.wantNewest(todayText)
	}
	m.now = today
	m.sees("0.1.0")

	m.now, m.measured = today.Add(20*day), true
	m.sees("0.1.0")
	m.now = today.Add(9 * 365 * day) // the root has not expired
	m.refuses(trust.ErrExpired, "timestamp.json")
	m.wantNewest(expiryText)
	m.now = today.Add(100 * 365 * day)
	m.refuses(trust.ErrExpired, "root.json")
	m.wantNewest(expiryText)
	m.now = today.Add(21 * day)
	m.refuses(trust.ErrExpired, "newest time")
	r.timestamp.Signed.Expires = today.Add(51 * day) // the repository's next one
	r.publishTimestamp(r.keys["timestamp"]...)
	m.sees("0.1.0")
}

// TestBuildTimeOfTheFuture: a release that was built with a wrong clock locks no machine out.
func TestBuildTimeOfTheFuture(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	wrong := manifest("amd64", "0.2.0")
	wrong.BuildTime = today.Add(50 * 365 * day).Unix()
	data, err := wrong.Encode()
	r.must(err)
	r.add(release.ManifestPath("amd64", "0.2.0"), data)
	r.channel("stable", "0.2.0", "")
	r.publish()
	if _, err := look(t.Context(), m.start()); err != nil {
		t.Fatal(err)
	}
	m.wantNewest(expiryText)
	r.timestamp.Signed.Expires = today.Add(31 * day)
	r.release("0.3.0", "")
	m.sees("0.3.0")
}

func TestNewestTimeNeverGoesBack(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	for _, d := range []time.Duration{0, 10 * day, 5 * day, -200 * day, 3 * day} {
		m.now = today.Add(d)
		c := m.start()
		before := c.NewestTime()
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c.NewestTime().Before(before) {
			t.Errorf("from %v to %v", before, c.NewestTime())
		}
	}
	m.wantNewest("2026-06-11T12:00:00Z")
	if got := m.start().NewestTime(); !got.Equal(today.Add(10 * day)) {
		t.Errorf("after a restart: %v", got)
	}
}
