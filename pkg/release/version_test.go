package release_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/release"
)

// TestOrder has one list, oldest first, and compares every pair of it.
func TestOrder(t *testing.T) {
	order := []string{
		"", "1", "v1.0.0", // no versions: below all, as strings
		"0.0.0-0", "0.0.0", "0.1.0-dev", "0.1.0", "0.1.1", "0.2.0", "0.9.0", "0.10.0",
		// The example of semver.org, section 11.
		"1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0",
		"1.0.1", "2.0.0-dev", "2.0.0", "18446744073709551616.0.0", "18446744073709551617.0.0",
	}
	for i, a := range order {
		for j, b := range order {
			got, want := release.Compare(a, b), i-j
			if got < 0 != (want < 0) || got > 0 != (want > 0) {
				t.Errorf("Compare(%q, %q) = %d; want the sign of %d", a, b, got, want)
			}
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, v := range []string{"0.1.0-dev", "1.2.3", "0.0.0", "1.0.0-rc.1", "1.0.0--", "1.0.0-0a.B-c"} {
		if err := release.CheckVersion(v); err != nil {
			t.Errorf("CheckVersion(%q) = %v", v, err)
		}
	}
	for _, v := range []string{
		"", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-a..b", "1.2.3-01", "1.2.3+build", "1.2.3-a+b", " 1.2.3", "1.2.3\n",
		"1.2.-3", "1.2.3-a/b", "1.2.3-ä", "../1.2.3", "1.2.3-" + strings.Repeat("a", 64),
	} {
		if err := release.CheckVersion(v); err == nil {
			t.Errorf("CheckVersion(%q) = nil; want an error", v)
		}
	}
}

func TestKubernetesSkips(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"v1.36.4", "v1.36.4", false},
		{"v1.36.4", "v1.36.5", false},
		{"v1.36.4", "v1.36.3", false}, // a patch version may be taken back
		{"v1.36.4", "v1.37.0", false},
		{"v1.36.4", "v1.37.9+k1", false},
		{"v1.9.0", "v1.10.0", false},
		{"v1.99.0", "v1.100.0", false},
		{"v1.36.0-rc.1", "v1.36.0", false},
		{"v1.36.4", "v1.38.0", true},
		{"v1.36.4", "v1.35.9", true},
		{"v1.36.4", "v2.0.0", true},
		{"v2.36.4", "v1.36.4", true},
		{"", "v1.36.4", true},
		{"v1.36.4", "1.37.0", true},
		{"v1.36.4", "v1.37", true},
	} {
		if got := release.KubernetesSkips(c.from, c.to); got != c.want {
			t.Errorf("KubernetesSkips(%q, %q) = %v; want %v", c.from, c.to, got, c.want)
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("1.0.0", "1.0.0-rc.1", "0.1.0-dev")
	f.Add("", "v1", "1.0.0-0")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if release.Compare(a, b) != -release.Compare(b, a) {
			t.Errorf("Compare(%q, %q) is not the opposite of the reverse", a, b)
		}
		if release.Compare(a, b) == 0 && a != b {
			t.Errorf("%q and %q count as the same", a, b)
		}
		s := []string{a, b, c}
		slices.SortFunc(s, release.Compare)
		if release.Compare(s[0], s[2]) > 0 {
			t.Errorf("no order: %q", s)
		}
		release.KubernetesSkips(a, b)
	})
}
