package config

import (
	"slices"
	"strings"
	"time"
)

// Window is a time of day, in UTC, on some days of the week: machines have no time zone, and a window that moved twice a
// year would be wrong twice a year. The zero Window is always open.
type Window struct {
	// Days are those on which it opens: mon, tue, wed, thu, fri, sat, sun. Empty: every day.
	Days []string `yaml:"days,omitempty" check:"day"`
	// Start is when it opens: "02:00".
	Start string `yaml:"start,omitempty" check:"timeOfDay"`
	// DurationText is how long it stays open, which may be past midnight; see Duration.
	DurationText string `yaml:"duration,omitempty" check:"windowDuration"`
}

// Duration is how long the window stays open each time, 0 for the zero Window.
func (w Window) Duration() time.Duration { return orTime(w.DurationText, 0) }

// always says whether there is no window to wait for.
func (w Window) always() bool { return w.Start == "" || w.DurationText == "" }

// Open says whether the window is open at that moment. It is from its start on, and no more when its duration has passed.
func (w Window) Open(now time.Time) bool {
	if w.always() {
		return true
	}
	// At most a day long, it opened today or yesterday.
	for back := range 2 {
		start, opens := w.on(now, -back)
		if opens && !now.Before(start) && now.Before(start.Add(w.Duration())) {
			return true
		}
	}
	return false
}

// Next is the first moment, not before now, at which the window is open; in UTC, unless that is now.
func (w Window) Next(now time.Time) time.Time {
	if w.Open(now) {
		return now
	}
	for ahead := range 8 { // today's has passed perhaps, and so the last one is that of this day in a week
		if start, opens := w.on(now, ahead); opens && !start.Before(now) {
			return start
		}
	}
	return now // cannot be: a window that is checked opens once a week
}

// on is when the window opens on the day that is so many days after now's, and whether it does.
func (w Window) on(now time.Time, days int) (time.Time, bool) {
	at, err := time.Parse("15:04", w.Start)
	if err != nil {
		return time.Time{}, false // has been checked
	}
	year, month, day := now.UTC().Date()
	start := time.Date(year, month, day+days, at.Hour(), at.Minute(), 0, 0, time.UTC)
	return start, len(w.Days) == 0 || slices.Contains(w.Days, weekday(start))
}

// weekday is the name of t's day in a document.
func weekday(t time.Time) string { return strings.ToLower(t.Weekday().String()[:3]) }
