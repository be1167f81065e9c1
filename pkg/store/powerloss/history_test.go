//go:build cgo && linux

package powerloss_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

// expectation is what a store must hold after a cut.
type expectation struct {
	// possible are the writes that may be a key's last, the acknowledged one
	// first if there is one.
	possible  map[string][]note
	revision  int64 // of the newest acknowledged write
	compacted int64 // acknowledged
	// acknowledged counts writes.
	acknowledged int
}

// expect reads the notes before a cut.
func expect(t *testing.T, r *powerloss.Recording, cut int) expectation {
	t.Helper()
	e := expectation{possible: map[string][]note{}}
	for _, data := range r.Notes(cut) {
		var n note
		if err := json.Unmarshal(data, &n); err != nil {
			t.Fatal(err)
		}
		switch {
		case n.Key == "" && n.Acknowledged:
			e.compacted = max(e.compacted, n.Revision)
		case n.Key == "":
		case n.Acknowledged:
			// Each key has one writer, which writes one after the other.
			e.possible[n.Key] = []note{n}
			e.revision = max(e.revision, n.Revision)
			e.acknowledged++
		default:
			if e.possible[n.Key] == nil {
				e.possible[n.Key] = []note{{Acknowledged: true, Key: n.Key}} // Nothing: as after a deletion.
			}
			e.possible[n.Key] = append(e.possible[n.Key], n)
		}
	}
	return e
}

// noted returns what is expected by a recording's notes.
func noted(t *testing.T, r *powerloss.Recording) func(cut int) expectation {
	return func(cut int) expectation { return expect(t, r, cut) }
}

// problems returns what a store's report contradicts.
func (e expectation) problems(r report) []string {
	if r.Err != "" {
		return []string{r.Err}
	}
	var problems []string
	if r.Revision < e.revision {
		problems = append(problems, fmt.Sprintf("revision %d is below %d, which was acknowledged", r.Revision, e.revision))
	}
	for _, key := range slices.Sorted(maps.Keys(e.possible)) {
		got, found := r.Keys[key]
		ok := slices.ContainsFunc(e.possible[key], func(n note) bool {
			return found == (n.Hash != "") && got.Hash == n.Hash && (!found || n.Revision == 0 || n.Revision == got.Revision)
		})
		if !ok {
			problems = append(problems, fmt.Sprintf("%s is %+v, found %t; want one of %+v", key, got, found, e.possible[key]))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Keys)) {
		if e.possible[key] == nil {
			problems = append(problems, fmt.Sprintf("%s is there and was never written", key))
		}
	}
	const enough = 4
	if more := len(problems) - enough; more > 0 {
		problems = append(problems[:enough], fmt.Sprintf("and %d more", more))
	}
	return problems
}

func TestExpectation(t *testing.T) {
	put := func(hash string, rev int64) note {
		return note{Acknowledged: rev != 0, Key: "/t/a", Hash: hash, Revision: rev}
	}
	found := func(hash string, rev int64) report {
		return report{Revision: rev, Keys: map[string]stored{"/t/a": {hash, rev}}}
	}
	for name, tt := range map[string]struct {
		possible []note
		got      report
		bad      bool
	}{
		"acknowledged":           {[]note{put("x", 5)}, found("x", 5), false},
		"later attempt":          {[]note{put("x", 5), put("y", 0)}, found("y", 6), false},
		"lost":                   {[]note{put("x", 5)}, report{Revision: 5}, true},
		"older value":            {[]note{put("x", 5)}, found("w", 4), true},
		"other revision":         {[]note{put("x", 5)}, found("x", 6), true},
		"revision went back":     {[]note{put("x", 5)}, report{Revision: 4, Keys: map[string]stored{"/t/a": {"x", 5}}}, true},
		"deleted":                {[]note{put("", 5)}, report{Revision: 5}, false},
		"deletion lost":          {[]note{put("", 5)}, found("x", 5), true},
		"deletion attempted":     {[]note{put("x", 5), put("", 0)}, report{Revision: 6}, false},
		"never written":          {nil, found("x", 5), true},
		"does not start":         {nil, report{Err: "x"}, true},
		"attempted, not there":   {[]note{{Key: "/t/a"}, put("x", 0)}, report{Revision: 5}, false},
		"attempted and is there": {[]note{{Key: "/t/a"}, put("x", 0)}, found("x", 5), false},
	} {
		e := expectation{possible: map[string][]note{}}
		for _, n := range tt.possible {
			e.possible["/t/a"] = append(e.possible["/t/a"], n)
			e.revision = max(e.revision, n.Revision)
		}
		if got := e.problems(tt.got); (len(got) > 0) != tt.bad {
			t.Errorf("%s: problems %q; want some: %t", name, got, tt.bad)
		}
	}
}
