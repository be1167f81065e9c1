package config

import (
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Upgrade says where new releases come from, and when the machine may take them. Where a cluster's roll-out decides, it
// decides instead of Auto and Window.
type Upgrade struct {
	// Source is a release directory: https://HOST/..., http://HOST/... or file:///PATH. Secret, for it may hold the name
	// and password that the server asks for; ShownSource is for people.
	Source string `yaml:"source,omitempty" check:"source" secret:""`
	// Channel names the line of releases to follow. Empty: DefaultChannel.
	Channel string `yaml:"channel,omitempty" check:"channel"`
	// Auto makes the machine take what is new in the channel without being told. It needs Source.
	Auto bool `yaml:"auto,omitempty"`
	// IntervalText is the time between two looks at the source; see Interval.
	IntervalText string `yaml:"interval,omitempty" check:"upgradeInterval"`
	// Window is when the machine may restart by itself. It is one decision, so that a later source replaces it whole.
	Window Window `yaml:"window,omitempty"`
	// RateLimitText bounds the download; see RateLimit.
	RateLimitText string `yaml:"rate_limit,omitempty" check:"rate"`
}

// What a machine does that is not told otherwise.
const (
	DefaultChannel         = "stable"
	DefaultUpgradeInterval = 6 * time.Hour
)

// EffectiveChannel is Channel, or the one of machines that name none.
func (u Upgrade) EffectiveChannel() string {
	if u.Channel == "" {
		return DefaultChannel
	}
	return u.Channel
}

// Interval is the time between two looks at the source.
func (u Upgrade) Interval() time.Duration { return orTime(u.IntervalText, DefaultUpgradeInterval) }

// RateLimit is the most bytes per second that a download may take from the line, 0 when there is no limit. RateLimitText is
// a number and a unit: B, kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024, kbit, Mbit and Gbit an eighth of the
// former, as lines are sold. "KB" and "Kbit" count as kB and kbit, and "/s" may follow.
func (u Upgrade) RateLimit() int64 {
	n, ok := parseRate(u.RateLimitText)
	if !ok {
		return 0 // has been checked, unless it is empty
	}
	return n
}

// ShownSource is Source without what may be secret in it: user, password and query.
func (u Upgrade) ShownSource() string { return shownURL(u.Source) }

// shownURL is an address without user, password, query and fragment; what is no address at all is not shown.
func shownURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String()
}

// source checks the form. Its words never quote the value.
func source(v string) string {
	const want = "want https://HOST/PATH or http://HOST/PATH of a release directory, or file:///PATH of one on the machine, and nothing after it"
	u, err := url.Parse(v)
	if err != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(v, "#") || u.Opaque != "" {
		return want
	}
	switch u.Scheme {
	case "https", "http":
		return unless(webHost(u), want)
	case "file":
		return unless(u.Host == "" && u.User == nil && path.IsAbs(u.Path) && oneLine(u.Path) == "" && !strings.Contains(u.Path, "\x00"), want)
	}
	return want
}

// webHost says whether the address names a machine and, if any, a port that there can be.
func webHost(u *url.URL) bool {
	if host(u.Hostname()) != "" || u.Host != u.Hostname() && strings.HasSuffix(u.Host, ":") {
		return false
	}
	return u.Port() == "" || port(u.Port())
}

func port(v string) bool {
	n, err := strconv.ParseUint(v, 10, 16)
	return err == nil && n > 0
}

// rateForm is a number with at most three decimals and its unit.
var rateForm = regexp.MustCompile(`^([0-9]{1,9})(?:\.([0-9]{1,3}))? ?(B|[kK]B|MB|GB|KiB|MiB|GiB|[kK]bit|Mbit|Gbit)(?:/s)?$`)

// rateUnits are the units in thousandths of a byte, so that three decimals stay exact.
var rateUnits = map[string]int64{
	"b": 1000, "kb": 1000e3, "mb": 1000e6, "gb": 1000e9,
	"kib": 1000 << 10, "mib": 1000 << 20, "gib": 1000 << 30,
	"kbit": 1000e3 / 8, "mbit": 1000e6 / 8, "gbit": 1000e9 / 8,
}

// Bounds of a rate in bytes per second: below the first an upgrade takes weeks, and no line reaches the second.
const (
	minRate = 1000
	maxRate = 100e9
)

// parseRate returns bytes per second.
func parseRate(v string) (int64, bool) {
	m := rateForm.FindStringSubmatch(v)
	if m == nil {
		return 0, false
	}
	whole, err := strconv.ParseInt(m[1], 10, 64)
	unit := rateUnits[strings.ToLower(m[3])]
	if err != nil || whole > maxRate*1000/unit {
		return 0, false
	}
	decimals, err := strconv.ParseInt((m[2] + "000")[:3], 10, 64)
	if err != nil {
		return 0, false
	}
	n := (whole*unit + decimals*unit/1000) / 1000
	return n, minRate <= n && n <= maxRate
}

func rate(v string) string {
	_, ok := parseRate(v)
	return unless(ok, "want how much per second, at least 1kB, such as 500KiB, 2MB or 1.5Mbit")
}

// within checks a time of Go's form between two bounds, which are written as such times.
func within(low, high, example string) func(string) string {
	want := "want a time such as " + example + ", at least " + low + " and at most " + high
	least, err1 := time.ParseDuration(low)
	most, err2 := time.ParseDuration(high)
	return func(v string) string {
		d, err := time.ParseDuration(v)
		return unless(err == nil && err1 == nil && err2 == nil && least <= d && d <= most, want)
	}
}

// orTime is the time that text says, which has been checked, or fallback when it says none.
func orTime(text string, fallback time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fallback
	}
	return d
}

func wholeWindow(r *reader, n *yaml.Node, path string) {
	if len(n.Content) == 0 {
		return // as if it were not given
	}
	for _, key := range []string{"start", "duration"} {
		if get(n, key) == nil {
			r.problem(n, path, "want start, the time of day, and duration; days may be left out")
			return
		}
	}
	r.differ(n, path, "days", "%s is given twice", func(v string) string { return v })
}
