package sweep

import (
	"fmt"
	"strings"
)

// kind is a way to choose what a power cut leaves of the writes that were not
// flushed yet.
type kind string

const (
	prefix   kind = "prefix"    // the first A writes
	without  kind = "without"   // all but write A
	only     kind = "only"      // nothing but write A
	writes   kind = "writes"    // those writes whose bit is set in A
	sectors  kind = "sectors"   // those sectors whose bit is set in A
	torn     kind = "torn"      // the first A writes, and the first B sectors of the next
	tornOnly kind = "torn-only" // the first B sectors of write A
	sample   kind = "sample"    // by chance, from the seed A
)

// choice is one of these; writes and sectors count from the last flush.
type choice struct {
	kind kind
	a, b uint64
}

func (c choice) String() string {
	switch c.kind {
	case torn, tornOnly:
		return fmt.Sprintf("%s:%d:%d", c.kind, c.a, c.b)
	case writes, sectors, sample:
		return fmt.Sprintf("%s:%#x", c.kind, c.a)
	}
	return fmt.Sprintf("%s:%d", c.kind, c.a)
}

func parseChoice(s string) (choice, error) {
	name, rest, _ := strings.Cut(s, ":")
	c := choice{kind: kind(name)}
	var n int
	var err error
	switch c.kind {
	case torn, tornOnly:
		n, err = fmt.Sscanf(rest, "%d:%d", &c.a, &c.b)
	case writes, sectors, sample:
		n, err = fmt.Sscanf(rest, "0x%x", &c.a)
	case prefix, without, only:
		n, err = fmt.Sscanf(rest, "%d", &c.a)
	}
	if err != nil || n == 0 || c.String() != s {
		return choice{}, fmt.Errorf("%q is no choice of kept writes", s)
	}
	return c, nil
}

// fate is what happens to one write.
type fate int

const (
	dropped fate = iota
	kept
	partly
)

// write returns the fate of write w of n.
func (c choice) write(w, n int) fate {
	yes := false
	u := uint64(w)
	switch c.kind {
	case prefix:
		yes = u < c.a
	case without:
		yes = u != c.a
	case only:
		yes = u == c.a
	case writes:
		yes = c.a>>u&1 != 0
	case sectors:
		return partly
	case torn:
		if u == c.a {
			return partly
		}
		yes = u < c.a
	case tornOnly:
		if u == c.a {
			return partly
		}
	case sample:
		return c.sampled(u, uint64(n))
	}
	if yes {
		return kept
	}
	return dropped
}

// sampled draws the fate of write w of n: the cut comes at a random moment,
// each write before it has the same chance to have reached the disk, and in
// half of the samples about eight writes are torn.
func (c choice) sampled(w, n uint64) fate {
	r := mix(c.a)
	if w > r%n {
		return dropped
	}
	chances := [4]uint64{2, 4, 6, 7}
	draw := mix(c.a ^ mix(w+1))
	if draw%8 >= chances[r>>60&3] {
		return dropped
	}
	if r>>59&1 != 0 && draw>>8%max(n, 8) < 8 {
		return partly
	}
	return kept
}

// sector says whether a sector of a write that is kept partly is kept. number
// counts within the write, atom over all writes.
func (c choice) sector(w, number, count, atom int64) bool {
	switch c.kind {
	case sectors:
		return c.a>>uint64(atom)&1 != 0
	case torn, tornOnly:
		return uint64(number) < c.b
	}
	r := mix(c.a + 0x51ed270b*mix(uint64(w)+7))
	cut := int64(r >> 8 % uint64(count+1))
	switch r & 3 {
	case 0: // the head
		return number < cut
	case 1: // the tail
		return number >= cut
	}
	return mix(r^mix(uint64(number)+3))&1 != 0
}

// block is a run of choices of one kind.
type block struct {
	count uint64
	get   func(i uint64) choice
}

// plan lists the choices for writes that have the given numbers of sectors, in
// blocks.
func plan(counts []int64, o Options, seed uint64) []block {
	n, atoms := uint64(len(counts)), int64(0)
	for _, c := range counts {
		atoms += c
	}
	simple := func(k kind, count, from uint64) block {
		return block{count, func(i uint64) choice { return choice{kind: k, a: i + from} }}
	}
	if n == 0 {
		return []block{simple(prefix, 1, 0)}
	}
	if atoms <= int64(o.Exhaustive) {
		return []block{simple(sectors, 1<<uint(atoms), 0)}
	}
	var all []block
	if n <= uint64(o.Exhaustive) {
		all = append(all, simple(writes, 1<<n, 0))
	} else {
		// No write, the first write, all but the last, and all are
		// among the prefixes.
		all = append(all, simple(prefix, n+1, 0), simple(without, n-1, 0), simple(only, n-1, 1))
	}
	for w, c := range counts {
		if c < 2 || c > int64(o.Torn) {
			continue
		}
		for _, k := range []kind{torn, tornOnly} {
			if w > 0 || k == torn { // else the two are the same
				all = append(all, block{uint64(c - 1), func(i uint64) choice { return choice{k, uint64(w), i + 1} }})
			}
		}
	}
	return append(all, block{uint64(o.Samples), func(i uint64) choice { return choice{kind: sample, a: mix(seed + mix(i))} }})
}
