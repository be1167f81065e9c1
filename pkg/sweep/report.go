package sweep

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// State names one state that a power cut can leave, for Judge and Make: a
// failed sweep is repeated by it without the others.
type State struct {
	Epoch  int    // number of the durable point before the cut, among those of the recording
	Choice string // what is left of the writes since then
}

func (s State) String() string { return fmt.Sprintf("%d/%s", s.Epoch, s.Choice) }

// ParseState reads what String wrote.
func ParseState(text string) (State, error) {
	epoch, rest, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(epoch)
	if err != nil || n < 0 {
		return State{}, fmt.Errorf("state %q: want a number, a slash and a choice", text)
	}
	if _, err := parseChoice(rest); err != nil {
		return State{}, fmt.Errorf("state %q: %w", text, err)
	}
	return State{n, rest}, nil
}

// Failure is a state in which someone has to help, or that boots what its
// phase forbids.
type Failure struct {
	State  State
	Phase  string
	Before int // index of the entry that could not complete any more
	Why    string

	index uint64 // of the state in its epoch
}

func (f Failure) String() string {
	return fmt.Sprintf("state %s, phase %s, before entry %d: %s", f.State, f.Phase, f.Before, f.Why)
}

// Count is what became of the states of one phase.
type Count struct {
	Phase     string
	States    int
	Versions  map[string]int // that booted
	Neither   int
	Stuck     int // boot and cannot go on
	Forbidden int // boot another version than the phase allows
	Tries     int // states after the selector's own writes, judged with these
}

// Report is the outcome of a sweep.
type Report struct {
	Entries  int // of the recording
	Sectors  int64
	Flushes  int
	Phases   []Count // the first is what comes before all phases
	Starts   int     // states that were new to the selector
	Failures []Failure
	Releases []string
	Seed     uint64
	Workers  int
	Time     time.Duration

	allowed [][]string
}

func newReport(rec Recording, o Options) Report {
	r := Report{Entries: len(rec.Entries), Phases: make([]Count, len(rec.Phases)+1), Seed: o.Seed, Workers: o.Workers, allowed: make([][]string, len(rec.Phases)+1)}
	for _, e := range rec.Entries {
		if e.writes() {
			r.Sectors += e.Count
		}
		if e.Flags&(Flush|Mark) == Flush {
			r.Flushes++
		}
	}
	for _, release := range o.Releases {
		r.Releases = append(r.Releases, release.Version)
	}
	r.Phases[0] = Count{Phase: "(start)", Versions: map[string]int{}}
	for i, p := range rec.Phases {
		r.Phases[i+1] = Count{Phase: p.Name, Versions: map[string]int{}}
		r.allowed[i+1] = p.Boots
	}
	return r
}

// moments are the entries before which a cut can leave a state.
type moments struct {
	from, to int
	index    uint64 // of the state in its epoch
}

// count adds a state. It counts in the phase where it can be left first, and
// must be allowed in all where it can be left.
func (r *Report) count(rec *Recording, s State, m moments, v *Verdict, failures int) {
	first, last := rec.phase(m.from), rec.phase(m.to)
	c := &r.Phases[first+1]
	c.States++
	c.Tries += v.Tries
	why := ""
	switch {
	case v.Version == "":
		c.Neither++
		why = v.String()
	case v.Stuck:
		c.Stuck++
		why = v.String()
	default:
		c.Versions[v.Version]++
		for i := first + 1; i <= last+1; i++ {
			if allowed := r.allowed[i]; len(allowed) > 0 && !slices.Contains(allowed, v.Version) {
				c.Forbidden++
				why = fmt.Sprintf("%s, where phase %s allows %s", v, r.Phases[i].Phase, strings.Join(allowed, ", "))
				break
			}
		}
	}
	if why != "" && len(r.Failures) < failures {
		r.Failures = append(r.Failures, Failure{s, c.Phase, m.to, why, m.index})
	}
}

// add takes in what another worker found in the same recording.
func (r *Report) add(o Report, failures int) {
	for i := range r.Phases {
		c, d := &r.Phases[i], o.Phases[i]
		c.States += d.States
		c.Neither += d.Neither
		c.Stuck += d.Stuck
		c.Forbidden += d.Forbidden
		c.Tries += d.Tries
		for v, n := range d.Versions {
			c.Versions[v] += n
		}
	}
	r.Starts += o.Starts
	r.Failures = append(r.Failures, o.Failures...)
	slices.SortFunc(r.Failures, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(a.State.Epoch, b.State.Epoch), cmp.Compare(a.index, b.index))
	})
	r.Failures = r.Failures[:min(len(r.Failures), failures)]
}

// Total is the sum of all phases.
func (r Report) Total() Count {
	t := Count{Phase: "total", Versions: map[string]int{}}
	for _, c := range r.Phases {
		t.States += c.States
		t.Neither += c.Neither
		t.Stuck += c.Stuck
		t.Forbidden += c.Forbidden
		t.Tries += c.Tries
		for v, n := range c.Versions {
			t.Versions[v] += n
		}
	}
	return t
}

// Bad is the number of states that fail.
func (r Report) Bad() int {
	t := r.Total()
	return t.Neither + t.Stuck + t.Forbidden
}

// String is the report for a person.
func (r Report) String() string {
	var b strings.Builder
	t := r.Total()
	fmt.Fprintf(&b, "power-cut sweep: %d entries, %d flushes, %.1f MB written; %d states in %.1f s (%.0f a minute and worker; %d workers, seed %d)\n",
		r.Entries, r.Flushes, float64(r.Sectors*SectorSize)/1e6, t.States, r.Time.Seconds(),
		float64(t.States)/max(r.Time.Minutes(), 1e-9)/float64(max(r.Workers, 1)), r.Workers, r.Seed)
	fmt.Fprintf(&b, "%d of them new to the selector; %d more after its own writes\n", r.Starts, t.Tries)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	names := slices.Sorted(maps.Keys(t.Versions))
	for _, v := range r.Releases {
		if !slices.Contains(names, v) {
			names = append(names, v)
		}
	}
	fmt.Fprintf(w, "phase\tstates\t%s\tneither\tstuck\tforbidden\t\n", strings.Join(names, "\t"))
	for _, c := range append(slices.Clone(r.Phases), t) {
		if c.States == 0 && c.Phase != t.Phase {
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t", c.Phase, c.States)
		for _, v := range names {
			fmt.Fprintf(w, "%d\t", c.Versions[v])
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t\n", c.Neither, c.Stuck, c.Forbidden)
	}
	_ = w.Flush() // a strings.Builder takes everything
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "%s\n", f)
	}
	if left := r.Bad() - len(r.Failures); left > 0 {
		fmt.Fprintf(&b, "and %d more\n", left)
	}
	return b.String()
}
