package main

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/stamp"
)

const (
	// clockPatience is how long a machine that joins waits for the time. A shop may have no time server at all.
	clockPatience = time.Minute
	clockPause    = time.Second
	// clockDoubt is how far beyond the last known time a clock may be that began there at boot.
	clockDoubt = 10 * time.Minute
)

// awaitClock waits, not for ever, until a time server has set the clock of a machine that has none with a battery: its
// time is the last one known, and certificates made by others since then would not be valid yet.
func (d *daemon) awaitClock(ctx context.Context) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return
	}
	known := d.floor
	if t, err := stamp.Read(stamp.Path); err == nil && t.After(known) {
		known = t
	}
	if !beganAt(time.Now(), known, time.Duration(info.Uptime)*time.Second) {
		return
	}
	client := adminapi.NewClient(adminapi.Path)
	for begin := time.Now(); time.Since(begin) < clockPatience; {
		// Without an answer cairnd is not up yet. Without a clock in it the time is somebody else's affair.
		st, err := client.Status(ctx)
		if ctx.Err() != nil || err == nil && (st.Clock == nil || st.Clock.Synchronized) {
			return
		}
		d.status("waiting for the time of day from a time server, a minute at most")
		select {
		case <-ctx.Done():
			return
		case <-time.After(clockPause):
		}
	}
	d.log.Warn("no time server answers; going on with the time of the clock", "now", time.Now().UTC())
}

// beganAt says whether a clock that shows now has probably run from the last known time since the machine was switched
// on. Where nothing is known, as in tests, there is no doubt.
func beganAt(now, known time.Time, uptime time.Duration) bool {
	return !known.IsZero() && now.Sub(known) < uptime+clockDoubt
}
