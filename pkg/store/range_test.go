package store

import (
	"bytes"
	"testing"
)

// FuzzRange holds the two readings of a range together: contains decides for
// watches in memory, bounds for lists in SQL.
func FuzzRange(f *testing.F) {
	f.Add("/a", "", "/a")
	f.Add("/a/", "/a0", "/a/b")
	f.Add("/a", "\x00", "/b")
	f.Add("\x00", "\x00", "x")
	f.Add("", "", "x")
	f.Add("b", "a", "b")
	f.Fuzz(func(t *testing.T, key, end, probe string) {
		r := newRange(key, end)
		start, stop := r.bounds()
		inSQL := probe >= string(start) && (r.open || probe < string(stop))
		if got := r.contains(probe); got != inSQL {
			t.Errorf("newRange(%q, %q).contains(%q) = %t; its bounds %q %q say %t", key, end, probe, got, start, stop, inSQL)
		}
		if start == nil || stop == nil {
			t.Errorf("newRange(%q, %q) has a nil bound, which SQL takes for NULL", key, end)
		}
		if r.single() && probe != key && r.contains(probe) {
			t.Errorf("single key %q contains %q", key, probe)
		}
		if bytes.Compare(start, []byte(key)) != 0 {
			t.Errorf("range of %q starts at %q", key, start)
		}
	})
}
