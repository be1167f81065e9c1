package history

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// entry is a key's state; the zero value is a key that does not exist.
type entry struct {
	value                      string
	created, modified, version int64
}

func (e entry) kv(key string) KV { return KV{key, e.value, e.created, e.modified, e.version} }

// change is one revision of the log.
type change struct {
	Event
	seen time.Duration // when a watch first told of it
}

// changes is the log: what all watches told, in order of revisions.
type changes struct {
	list   []change
	byRev  map[int64]int // revision to index of list
	states []map[string]entry
}

// merge makes the log of what all streams delivered. Two streams that
// disagree about a revision are a problem.
func merge(streams []Stream, p *problems) *changes {
	all := map[int64]change{}
	from := map[int64]string{}
	for _, s := range streams {
		for _, i := range s.Items {
			if i.Progress != 0 {
				continue
			}
			rev := i.Event.Modified
			known, ok := all[rev]
			switch {
			case !ok:
				all[rev], from[rev] = change{i.Event, i.At}, s.String()
			case known.Event != i.Event:
				p.add("revision %d is two changes: %s delivered %v (replacing %v), %s %v (replacing %v)",
					rev, from[rev], known.Event, known.Prev, s, i.Event, i.Event.Prev)
			case i.At < known.seen:
				known.seen = i.At
				all[rev] = known
			}
		}
	}
	c := &changes{byRev: map[int64]int{}}
	state := map[string]entry{}
	for i, rev := range slices.Sorted(maps.Keys(all)) {
		x := all[rev]
		c.list, c.byRev[rev] = append(c.list, x), i
		state = maps.Clone(state)
		apply(state, x, p)
		c.states = append(c.states, state)
	}
	return c
}

// apply checks that an event fits what was before it and applies it.
func apply(state map[string]entry, x change, p *problems) {
	before, existed := state[x.Key]
	if x.Prev != (KV{}) || existed {
		if want := before.kv(x.Key); !existed || x.Prev != want {
			p.add("the event at revision %d (%v) replaces %v; before it %s was %v", x.Modified, x.Event, x.Prev, x.Key, want)
		}
	}
	if x.Deleted {
		delete(state, x.Key)
		return
	}
	want := entry{x.Value, before.created, x.Modified, before.version + 1}
	if !existed {
		want.created = x.Modified
	}
	if got := (entry{x.Value, x.Created, x.Modified, x.Version}); got != want {
		p.add("the event at revision %d is %v; want %v", x.Modified, x.Event, want.kv(x.Key))
	}
	state[x.Key] = want
}

// at is the state at a revision.
func (c *changes) at(revision int64) map[string]entry {
	i, found := slices.BinarySearchFunc(c.list, revision, func(x change, rev int64) int { return int(x.Modified - rev) })
	if !found {
		i--
	}
	if i < 0 {
		return nil
	}
	return c.states[i]
}

func (c *changes) last() int64 {
	if len(c.list) == 0 {
		return 0
	}
	return c.list[len(c.list)-1].Modified
}

// checkStream judges one watch: each revision of the log once, in order, and
// up to the log's end if it is a standing one.
func (c *changes) checkStream(s Stream, p *problems) {
	next := slices.IndexFunc(c.list, func(x change) bool { return x.Modified >= s.From }) // in the log
	if next < 0 {
		next = len(c.list)
	}
	var told, newest int64 // by progress, and delivered
	for _, i := range s.Items {
		rev := i.Event.Modified
		switch {
		case i.Progress != 0:
			if next < len(c.list) && c.list[next].Modified <= i.Progress {
				p.add("%s said at %s that it had delivered all up to revision %d, but had not delivered %v", s, i.At, i.Progress, c.list[next].Event)
			}
			told = max(told, i.Progress)
			continue
		case rev < s.From:
			p.add("%s delivered revision %d at %s: %v", s, rev, i.At, i.Event)
			continue
		case rev == newest:
			p.add("%s delivered revision %d twice, at last at %s: %v", s, rev, i.At, i.Event)
			continue
		case rev < newest:
			p.add("%s delivered revision %d after %d, at %s: %v", s, rev, newest, i.At, i.Event)
			continue
		case rev <= told:
			p.add("%s delivered revision %d at %s, having said that all up to %d was delivered: %v", s, rev, i.At, told, i.Event)
		}
		if missed := c.byRev[rev] - next; missed > 0 {
			p.add("%s left out %d revisions before %d, the first of them %v", s, missed, rev, c.list[next].Event)
		}
		next, newest = c.byRev[rev]+1, rev
	}
	if next < len(c.list) && !s.Passing {
		p.add("%s ended at revision %d; left out %d later revisions, the first of them %v", s, newest, len(c.list)-next, c.list[next].Event)
	}
}

// problems gathers what is wrong, in readable lines.
type problems struct {
	lines []string
	more  int
}

// maxProblems keeps a report readable: one fault often shows a thousand times.
const maxProblems = 20

func (p *problems) add(format string, args ...any) {
	if len(p.lines) >= maxProblems {
		p.more++
		return
	}
	p.lines = append(p.lines, fmt.Sprintf(format, args...))
}
