package sweep

import "fmt"

// write is a request that was completed and is not durable yet.
type write struct {
	entry int
	first int64
	count int64
	data  int64 // place in the log, or zeros
	// gone are sectors that a later write with FUA made durable in another
	// version, so that this one can no more come to be.
	gone map[int64]bool

	atom  int64  // number of the first sector among those of all writes
	delta []part // of the sectors that no other write has
}

// at is where in the log the content of a sector is.
func (w *write) at(sector int64) int64 {
	if w.data == zeros {
		return zeros
	}
	return w.data + (sector-w.first)*SectorSize
}

// part is a change of one region.
type part struct {
	in region
	d  digest
}

func (k *key) apply(parts []part) {
	for _, p := range parts {
		k[p.in] = k[p.in].xor(p.d)
	}
}

// version is one of several contents that a sector has in an epoch.
type version struct {
	write int32
	older int32 // index of the version before it, -1 for none
}

// epoch is the time between two flushes, at its end: the disk that is durable
// and the writes of which a power cut may leave any part. A sector is left in
// its durable version or in any that was written since.
type epoch struct {
	d       *medium
	number  int
	since   int // index of the entry after the last that made something durable
	writes  []write
	touched [maxRegions]bool

	// index is the newest version of each sector, in versions.
	index    map[int64]int32
	versions []version
	shared   []int64  // sectors with several versions
	atoms    []digest // of each sector of each write; zero for shared and gone ones
	// cum[i] is the key with the first i writes, but for shared sectors.
	cum []key
}

// build prepares for choices among writes. The previous epoch's memory is used
// again.
func (e *epoch) build() error {
	e.index, e.versions, e.shared, e.atoms = map[int64]int32{}, e.versions[:0], e.shared[:0], e.atoms[:0]
	e.touched = [maxRegions]bool{}
	for i := range e.writes {
		w := &e.writes[i]
		for s := w.first; s < w.first+w.count; s++ {
			if w.gone[s] {
				continue
			}
			older := int32(-1)
			if v, ok := e.index[s]; ok {
				if older = v; e.versions[v].older < 0 {
					e.shared = append(e.shared, s)
				}
			}
			e.index[s] = int32(len(e.versions))
			e.versions = append(e.versions, version{int32(i), older})
		}
	}
	e.cum = append(e.cum[:0], e.d.key)
	atom := int64(0)
	for i := range e.writes {
		w := &e.writes[i]
		w.atom = atom
		atom += w.count
		if err := e.measure(w); err != nil {
			return err
		}
		k := e.cum[i]
		k.apply(w.delta)
		e.cum = append(e.cum, k)
	}
	return nil
}

// measure computes what a write changes where it is the only one.
func (e *epoch) measure(w *write) error {
	w.delta = w.delta[:0]
	for s := w.first; s < w.first+w.count; s++ {
		in, _ := e.d.g.at(s)
		var c digest
		if in != ignored && !w.gone[s] {
			e.touched[in] = true
			if e.versions[e.index[s]].older < 0 {
				var err error
				if c, err = e.d.change(s, w.at(s)); err != nil {
					return err
				}
				if n := len(w.delta); n > 0 && w.delta[n-1].in == in {
					w.delta[n-1].d = w.delta[n-1].d.xor(c)
				} else {
					w.delta = append(w.delta, part{in, c})
				}
			}
		}
		e.atoms = append(e.atoms, c)
	}
	return nil
}

// keeps reports whether a sector of write i is kept.
func (e *epoch) keeps(c choice, i int, sector int64) bool {
	switch c.write(i, len(e.writes)) {
	case kept:
		return true
	case dropped:
		return false
	}
	w := &e.writes[i]
	return c.sector(int64(i), sector-w.first, w.count, w.atom+sector-w.first)
}

// find returns where in the log a sector's content is, if any version of it
// was kept: the newest of those.
func (e *epoch) find(sector int64, c choice) (at int64, ok bool) {
	v, ok := e.index[sector]
	for ; ok && v >= 0; v = e.versions[v].older {
		if i := int(e.versions[v].write); e.keeps(c, i, sector) {
			return e.writes[i].at(sector), true
		}
	}
	return 0, false
}

// key is what the regions hold after a power cut that leaves c.
func (e *epoch) key(c choice) (key, error) {
	n := len(e.writes)
	var k key
	switch c.kind {
	case prefix:
		if k = e.d.key; c.a > 0 {
			k = e.cum[c.a]
		}
	case without:
		k = e.cum[n]
		k.apply(e.writes[c.a].delta)
	case only:
		k = e.d.key
		k.apply(e.writes[c.a].delta)
	case torn:
		k = e.cum[c.a]
		e.partly(&k, c, int(c.a))
	case tornOnly:
		k = e.d.key
		e.partly(&k, c, int(c.a))
	default:
		k = e.d.key
		for i := range e.writes {
			switch c.write(i, n) {
			case kept:
				k.apply(e.writes[i].delta)
			case partly:
				e.partly(&k, c, i)
			}
		}
	}
	for _, s := range e.shared {
		at, ok := e.find(s, c)
		if !ok {
			continue
		}
		if in, _ := e.d.g.at(s); in != ignored {
			change, err := e.d.change(s, at)
			if err != nil {
				return k, err
			}
			k[in] = k[in].xor(change)
		}
	}
	return k, nil
}

// partly applies those sectors of write i that c keeps.
func (e *epoch) partly(k *key, c choice, i int) {
	w := &e.writes[i]
	for s := w.first; s < w.first+w.count; s++ {
		if atom := w.atom + s - w.first; e.atoms[atom] != (digest{}) && c.sector(int64(i), s-w.first, w.count, atom) {
			in, _ := e.d.g.at(s)
			k[in] = k[in].xor(e.atoms[atom])
		}
	}
}

// last is the moment from which on c can be what a cut leaves: when the last
// write that it keeps any of was under way.
func (e *epoch) last(c choice) int {
	switch {
	case c.kind == prefix && c.a == 0:
		return e.since
	case c.kind == prefix:
		return max(e.writes[c.a-1].entry, e.since)
	case c.kind == only || c.kind == torn || c.kind == tornOnly:
		return max(e.writes[c.a].entry, e.since)
	}
	for i := len(e.writes) - 1; i >= 0; i-- {
		if c.write(i, len(e.writes)) != dropped {
			return max(e.writes[i].entry, e.since)
		}
	}
	return e.since
}

// check reports whether c fits the writes of the epoch.
func (e *epoch) check(c choice) error {
	n := uint64(len(e.writes))
	if c.kind == prefix && c.a > n || (c.kind == without || c.kind == only || c.kind == torn || c.kind == tornOnly) && c.a >= n ||
		n == 0 && c.a != 0 {
		return fmt.Errorf("choice %s of %d writes", c, n)
	}
	return nil
}

// counts are the numbers of sectors of the writes.
func (e *epoch) counts() []int64 {
	all := make([]int64, len(e.writes))
	for i, w := range e.writes {
		all[i] = w.count
	}
	return all
}

// flush makes all writes durable, in their order.
func (e *epoch) flush() error {
	for i := range e.writes {
		w := &e.writes[i]
		for s := w.first; s < w.first+w.count; s++ {
			if !w.gone[s] {
				if err := e.d.settle(s, w.at(s)); err != nil {
					return err
				}
			}
		}
	}
	e.clear()
	return nil
}

func (e *epoch) clear() {
	e.writes = e.writes[:0]
	e.index, e.touched = nil, [maxRegions]bool{}
}

// supersede makes the content of one write durable, whatever becomes of those
// before it.
func (e *epoch) supersede(w write) error {
	for s := w.first; s < w.first+w.count; s++ {
		for i := range e.writes {
			if o := &e.writes[i]; s >= o.first && s < o.first+o.count {
				if o.gone == nil {
					o.gone = map[int64]bool{}
				}
				o.gone[s] = true
			}
		}
		if err := e.d.settle(s, w.at(s)); err != nil {
			return err
		}
	}
	return nil
}
