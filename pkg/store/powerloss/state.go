package powerloss

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Variant says what a cut takes of what was not flushed.
type Variant string

// The variants.
const (
	// Whole loses nothing: all that began is there.
	Whole Variant = "whole"
	// Least leaves what was flushed, and what the journal holds before that.
	Least Variant = "least"
	// Hollow leaves all metadata, and data only where it was flushed or the
	// file grew by it.
	Hollow Variant = "hollow"
	// Torn leaves a random prefix of the journal and random blocks.
	Torn Variant = "torn"
	// DetachedLeast leaves of each file and directory what was flushed.
	DetachedLeast Variant = "detached-least"
	// DetachedTorn leaves a random prefix of each one's own metadata, and
	// random blocks.
	DetachedTorn Variant = "detached-torn"
	// Unordered is DetachedTorn without the order of data and size: a file may
	// have grown without what was written there, and reads zeros instead.
	Unordered Variant = "unordered"
)

// Variants are all of them, those that find most first.
var Variants = []Variant{Torn, DetachedTorn, Least, DetachedLeast, Unordered, Whole, Hollow}

// State is one state that a cut could have left. It is the same whenever it
// is made from the same recording.
type State struct {
	Cut     int
	Variant Variant
	Seed    uint64
	rec     *Recording
}

// String is read by Recording.Parse.
func (s State) String() string {
	return fmt.Sprintf("cut=%d variant=%s seed=%d", s.Cut, s.Variant, s.Seed)
}

// Parse returns the state that String named.
func (r *Recording) Parse(text string) (State, error) {
	s := State{rec: r}
	if _, err := fmt.Sscanf(text, "cut=%d variant=%s seed=%d", &s.Cut, &s.Variant, &s.Seed); err != nil {
		return s, fmt.Errorf("state %q: %w; want what a test printed, like %q", text, err, State{Cut: 1, Variant: Torn})
	}
	if !slices.Contains(Variants, s.Variant) || s.Cut < r.Start || s.Cut > r.End {
		return s, fmt.Errorf("state %q: the variant is not one of %v or the cut is not in %d to %d", text, Variants, r.Start, r.End)
	}
	return s, nil
}

// States returns states that a cut after position cut could have left, one of
// each variant, all if none is given.
func (r *Recording) States(cut int, seed uint64, variants ...Variant) []State {
	if len(variants) == 0 {
		variants = Variants
	}
	states := make([]State, len(variants))
	for i, v := range variants {
		states[i] = State{Cut: cut, Variant: v, Seed: seed + uint64(i), rec: r}
	}
	return states
}

// Cuts returns at most n different positions in order, all if n is at least
// their number. Half of them are beside an event that is not a mere write: a
// name changes, a file is flushed, cut off or allocated.
func (r *Recording) Cuts(n int, seed uint64) []int {
	if n > r.End-r.Start {
		n = r.End - r.Start + 1
	}
	var special []*Event
	for _, e := range r.Events {
		if e.Began > r.Start && e.Kind != Write && e.Kind != Mark {
			special = append(special, e)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	chosen := map[int]bool{}
	for tries := 0; len(chosen) < n; tries++ {
		cut := r.Start + rng.IntN(r.End-r.Start+1)
		// Positions beside special events run out.
		if tries%2 == 0 && tries < 4*n && len(special) > 0 {
			e := special[rng.IntN(len(special))]
			cut = e.Began - 1 + rng.IntN(3)
			if e.Ended > e.Began+1 && rng.IntN(2) == 0 {
				cut = e.Ended - 1 + rng.IntN(2)
			}
		}
		if cut >= r.Start && cut <= r.End {
			chosen[cut] = true
		}
	}
	var cuts []int
	for cut := range chosen {
		cuts = append(cuts, cut)
	}
	slices.Sort(cuts)
	return cuts
}

// disk is what a state consists of.
type disk struct {
	state State
	rng   *rand.Rand
	torn  bool
	block int64   // bytes that survive or go together
	keep  float64 // how likely a block survives

	happened []*Event // before the cut
	survives map[*Event]bool
	names    map[uint64]map[string]uint64
	modes    map[uint64]uint32
}

// disk decides what of the metadata survives.
func (s State) disk() *disk {
	rng := rand.New(rand.NewPCG(s.Seed, uint64(s.Cut)))
	d := &disk{
		state: s, rng: rng, torn: s.Variant == Torn || s.Variant == DetachedTorn || s.Variant == Unordered,
		block: []int64{512, 4096}[rng.IntN(2)], keep: []float64{0.1, 0.5, 0.9}[rng.IntN(3)],
		survives: map[*Event]bool{}, names: map[uint64]map[string]uint64{root: {}}, modes: map[uint64]uint32{},
	}
	// One journal, or one for each file and directory.
	journals, order := map[uint64][]*Event{}, []uint64{}
	for _, e := range s.rec.Events {
		if e.Began > s.Cut {
			break
		}
		d.happened = append(d.happened, e)
		if !e.journaled() {
			continue
		}
		var journal uint64
		if s.Variant == DetachedLeast || s.Variant == DetachedTorn || s.Variant == Unordered {
			journal = e.home()
		}
		if journals[journal] == nil {
			order = append(order, journal)
		}
		journals[journal] = append(journals[journal], e)
	}
	for _, journal := range order {
		events := journals[journal]
		for _, e := range events[:d.prefix(events)] {
			d.survives[e] = true
		}
	}
	for _, e := range d.happened {
		if d.survives[e] {
			d.apply(e)
		}
	}
	return d
}

// flushed reports whether the event is certain to be there.
func (d *disk) flushed(e *Event) bool { return e.flushed != 0 && e.flushed <= d.state.Cut }

// prefix returns how many events of a journal survive.
func (d *disk) prefix(events []*Event) int {
	least := 0
	for i, e := range events {
		if d.flushed(e) {
			least = i + 1
		}
	}
	switch d.state.Variant {
	case Whole, Hollow:
		return len(events)
	case Least, DetachedLeast:
		return least
	}
	return least + d.rng.IntN(len(events)-least+1)
}

// apply changes names and modes.
func (d *disk) apply(e *Event) {
	in := func(dir uint64) map[string]uint64 {
		if d.names[dir] == nil {
			d.names[dir] = map[string]uint64{}
		}
		return d.names[dir]
	}
	switch e.Kind {
	case Create, Link:
		in(e.Dir)[e.Name] = e.File
	case Mkdir:
		in(e.Dir)[e.Name] = e.File
		in(e.File)
	case Remove:
		delete(in(e.Dir), e.Name)
	case Rename:
		// The source's own journal may have lost that it was there.
		if in(e.Dir)[e.Name] == e.File {
			delete(in(e.Dir), e.Name)
		}
		in(e.ToDir)[e.ToName] = e.File
	case Exchange:
		// The journal that has the names may have lost that one was made.
		from, to := in(e.Dir), in(e.ToDir)
		if a, b := from[e.Name], to[e.ToName]; a != 0 && b != 0 {
			from[e.Name], to[e.ToName] = b, a
		}
	}
	if e.Kind == Create || e.Kind == Mkdir || e.Kind == Chmod {
		d.modes[e.File] = uint32(e.Mode)
	}
}

// content returns what a file holds.
func (d *disk) content(id uint64) []byte {
	// Chance of its own: the result does not depend on which file is asked for first.
	d.rng = rand.New(rand.NewPCG(d.state.Seed^id<<32, uint64(d.state.Cut)))
	events := d.history(id)
	missing := d.missing(events)
	var data []byte
	for _, e := range events {
		switch {
		case e.Kind == Truncate && d.survives[e], e.Kind == Allocate && d.survives[e] && e.Size > int64(len(data)):
			data = resize(data, e.Size)
		case e.Kind == Write:
			end := e.Offset + int64(len(e.Data))
			if e.Grows && d.survives[e] {
				data = resize(data, max(end, int64(len(data))))
			} else if e.Grows && d.torn && d.rng.IntN(2) == 0 {
				// The last to grow may do so by some blocks only.
				if size := min(end, e.Offset+d.block*d.rng.Int64N(int64(len(e.Data))/d.block+1)); size > int64(len(data)) {
					data = resize(data, size)
					copy(data[min(e.Offset, size):], e.Data)
				}
			}
			d.put(data, e, missing[e])
		}
	}
	return data
}

// history returns the file's events up to the first lost truncation: what was
// written after it is in blocks that the file does not have.
func (d *disk) history(id uint64) []*Event {
	var events []*Event
	for _, e := range d.happened {
		if e.File != id || (e.Kind != Write && e.Kind != Truncate && e.Kind != Allocate) {
			continue
		}
		if e.Kind == Truncate && !d.survives[e] {
			break
		}
		events = append(events, e)
	}
	return events
}

// missing decides which blocks of which writes are lost.
func (d *disk) missing(events []*Event) map[*Event]map[int64]bool {
	loose := map[int64][]*Event{} // block to the writes to it that may be lost
	var order []int64
	for _, e := range events {
		if e.Kind == Truncate {
			continue
		}
		for block := e.Offset / d.block; block*d.block < e.Offset+int64(len(e.Data)); block++ {
			switch {
			case e.Kind != Write:
			case d.flushed(e), e.Grows && d.survives[e] && d.state.Variant != Unordered:
				loose[block] = nil // What was in the cache went with it.
			default:
				if loose[block] == nil {
					order = append(order, block)
				}
				loose[block] = append(loose[block], e)
			}
		}
	}
	missing := map[*Event]map[int64]bool{}
	for _, block := range order {
		writes := loose[block]
		loose[block] = nil // It may be in order twice.
		there := 0
		switch {
		case d.state.Variant == Whole:
			there = len(writes)
		case d.torn:
			for there < len(writes) && d.rng.Float64() < d.keep {
				there++
			}
		}
		for _, e := range writes[there:] {
			if missing[e] == nil {
				missing[e] = map[int64]bool{}
			}
			missing[e][block] = true
		}
	}
	return missing
}

// put copies a write into data, which does not grow, but for lost blocks.
func (d *disk) put(data []byte, e *Event, lost map[int64]bool) {
	for at := int64(0); at < int64(len(e.Data)); {
		block := (e.Offset + at) / d.block
		n := min(int64(len(e.Data))-at, (block+1)*d.block-e.Offset-at)
		if lost == nil {
			n = int64(len(e.Data)) - at
		}
		if to := e.Offset + at; !lost[block] && to < int64(len(data)) {
			copy(data[to:], e.Data[at:at+n])
		}
		at += n
	}
}

// resize cuts data off or extends it by zeros.
func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size:size]
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}
