package sweep

import (
	"hash/maphash"
	"io"
)

// digest stands for a set of sectors and their content. The digests of
// different sectors are combined by xor, so that of a whole region follows a
// write to one sector without reading the others.
type digest [2]uint64

func (d digest) xor(o digest) digest { return digest{d[0] ^ o[0], d[1] ^ o[1]} }

// key is what the regions hold, as the difference to the disk's first state.
type key [maxRegions]digest

// fold is the key in a form that is cheap to look up.
func (k *key) fold(n int) digest {
	d := digest{0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f}
	for i := range n {
		d[0] = mix(d[0] ^ k[i][0])
		d[1] = mix(d[1] + k[i][1])
	}
	return d
}

// mix spreads the bits of x (the end of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// hasher makes digests. Its numbers differ in every run; no result depends on
// them unless two of 2^128 meet.
type hasher [2]maphash.Seed

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

func (h hasher) sector(number int64, data []byte) digest {
	n := uint64(number)
	return digest{mix(maphash.Bytes(h[0], data) + n*0x9e3779b97f4a7c15), mix(maphash.Bytes(h[1], data) ^ n*0xd6e8feb86659fd93)}
}

// zeros is the place of data that are not in the log but zeros.
const zeros = -1

// medium is what is durable at some point of a recording: the base with the
// sectors over it that were written since. Only what matters is kept.
type medium struct {
	rec  *Recording
	g    *regions
	hash hasher
	// over is where in the log the sectors' content is.
	over map[int64]int64
	key  key
	// touched says which regions differ from the base in any sector.
	touched [maxRegions]bool
	buf     []byte
}

func newMedium(rec *Recording, g *regions, h hasher) *medium {
	return &medium{rec: rec, g: g, hash: h, over: map[int64]int64{}, buf: make([]byte, SectorSize)}
}

// content reads the data at a place of the log.
func (d *medium) content(p []byte, at int64) error {
	if at == zeros {
		clear(p)
		return nil
	}
	return readFull(d.rec.Log, p, at)
}

func readFull(r io.ReaderAt, p []byte, at int64) error {
	n, err := r.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	return err
}

// durable reads a sector.
func (d *medium) durable(p []byte, sector int64) error {
	if at, ok := d.over[sector]; ok {
		return d.content(p, at)
	}
	return readFull(d.rec.Base, p, sector*SectorSize)
}

// change returns how the digest of its region changes when a sector's durable
// content becomes that at a place of the log.
func (d *medium) change(sector, at int64) (digest, error) {
	if err := d.durable(d.buf, sector); err != nil {
		return digest{}, err
	}
	old := d.hash.sector(sector, d.buf)
	if err := d.content(d.buf, at); err != nil {
		return digest{}, err
	}
	return old.xor(d.hash.sector(sector, d.buf)), nil
}

// settle makes a sector's new content durable.
func (d *medium) settle(sector, at int64) error {
	in, _ := d.g.at(sector)
	if in == ignored {
		return nil
	}
	c, err := d.change(sector, at)
	if err != nil {
		return err
	}
	d.key[in] = d.key[in].xor(c)
	d.over[sector] = at
	d.touched[in] = true
	return nil
}

// view is the disk as it is found after a power cut: what is durable, what was
// kept of the rest, and what the selector wrote since.
type view struct {
	d *medium
	e *epoch
	c choice
	// extra are sectors that were written after the power came back.
	extra map[int64][]byte
}

// clean reports whether the base's content counts in the region.
func (v *view) clean(in region) bool {
	return in == ignored || !v.d.touched[in] && !v.e.touched[in] && len(v.extra) == 0
}

// ReadAt reads the disk. Ignored regions are as in the base.
func (v *view) ReadAt(p []byte, at int64) (int, error) {
	n := 0
	for n < len(p) {
		sector, skip := at/SectorSize, at%SectorSize
		length := min(int64(len(p)-n), SectorSize-skip)
		in, end := v.d.g.at(sector)
		if v.clean(in) {
			if rest := end - sector; rest < 1<<40 {
				length = min(int64(len(p)-n), rest*SectorSize-skip)
			}
			if err := readFull(v.d.rec.Base, p[n:n+int(length)], at); err != nil {
				return n, err
			}
		} else if err := v.sector(p[n:n+int(length)], sector, skip); err != nil {
			return n, err
		}
		n += int(length)
		at += length
	}
	return n, nil
}

// sector reads a part of one sector.
func (v *view) sector(p []byte, sector, skip int64) error {
	if data, ok := v.extra[sector]; ok {
		copy(p, data[skip:])
		return nil
	}
	at, ok := v.e.find(sector, v.c)
	if !ok {
		at, ok = v.d.over[sector]
	}
	if !ok {
		return readFull(v.d.rec.Base, p, sector*SectorSize+skip)
	}
	if at != zeros {
		at += skip
	}
	return v.d.content(p, at)
}

// with returns the view after data was written to a sector.
func (v *view) with(sector int64, data []byte) *view {
	w := *v
	w.extra = make(map[int64][]byte, len(v.extra)+1)
	for s, b := range v.extra {
		w.extra[s] = b
	}
	w.extra[sector] = data
	return &w
}
