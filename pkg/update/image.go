package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// image is one image of the release, and where it goes.
type image struct {
	release.Image
	index   chunk.Index
	offsets []int64
	zeros   []bool
	sizes   chunk.Sizes // nil when the release has none
	base    chunk.Base
	deltas  map[chunk.ID]chunk.Delta

	dev Device // of the inactive slot
	old Device // of the running slot, read-only

	buf []byte // of one chunk
	// What survey found.
	needs []int              // chunks that are not in place
	seeds map[chunk.ID]place // where on this machine a chunk of needs is
}

// place is where bytes are.
type place struct {
	dev    Device
	offset int64
}

// load reads the signed lists of m's image name. old is the version that runs.
func load(ctx context.Context, t Trust, m release.Image, old string) (*image, int64, error) {
	data, err := t.Target(ctx, m.Index, chunk.MaxIndex)
	if err != nil {
		return nil, 0, fmt.Errorf("index of %s: %w", m.Name, err)
	}
	received := int64(len(data))
	x, err := chunk.DecodeIndex(data)
	if err != nil {
		return nil, 0, fmt.Errorf("index of %s: %w", m.Name, err)
	}
	if x.Length() != m.Data {
		return nil, 0, fmt.Errorf("index of %s covers %d bytes and the manifest says %d: the release is inconsistent", m.Name, x.Length(), m.Data)
	}
	im := &image{Image: m, index: x, zeros: x.Zeros(), offsets: make([]int64, len(x.Chunks)), deltas: map[chunk.ID]chunk.Delta{}}
	for i, c := range x.Chunks[:max(0, len(x.Chunks)-1)] {
		im.offsets[i+1] = im.offsets[i] + int64(c.Size)
	}
	n, err := im.loadSizes(ctx, t)
	received += n
	if err == nil {
		n, err = im.loadDeltas(ctx, t, old)
		received += n
	}
	return im, received, err
}

func (im *image) loadSizes(ctx context.Context, t Trust) (int64, error) {
	data, err := t.Target(ctx, chunk.SizesPath(im.Index), chunk.MaxList)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err == nil {
		im.sizes, err = chunk.DecodeSizes(data, im.index)
	}
	if err != nil {
		return 0, fmt.Errorf("sizes of %s: %w", im.Name, err)
	}
	return int64(len(data)), nil
}

func (im *image) loadDeltas(ctx context.Context, t Trust, old string) (int64, error) {
	data, err := t.Target(ctx, chunk.DeltasPath(im.Index, old), chunk.MaxList)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var d chunk.Deltas
	if err == nil {
		d, err = chunk.DecodeDeltas(data, im.index)
	}
	if err == nil && d.Base.Version != old {
		err = fmt.Errorf("they lean on version %s", d.Base.Version)
	}
	if err != nil {
		return 0, fmt.Errorf("deltas of %s from %s: %w", im.Name, old, err)
	}
	im.base = d.Base
	for _, e := range d.List {
		im.deltas[im.index.Chunks[e.Chunk].ID] = e
	}
	return int64(len(data)), nil
}

// survey reads what is in the slot, and finds the chunks that are not there on the running slot. The running slot is
// split as the new index is, so it does not matter how its own release was split.
func (im *image) survey(ctx context.Context) error {
	im.needs, im.seeds = nil, map[chunk.ID]place{}
	here := map[chunk.ID]int64{}
	im.buf = make([]byte, im.index.Params.Max)
	for i, c := range im.index.Chunks {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := im.buf[:c.Size]
		// A place that cannot be read is not right; writing to it may heal it.
		if _, err := im.dev.ReadAt(b, im.offsets[i]); err == nil && chunk.Sum(b) == c.ID {
			here[c.ID] = im.offsets[i]
		} else {
			im.needs = append(im.needs, i)
		}
	}
	wanted := map[chunk.ID]bool{}
	for _, i := range im.needs {
		id := im.index.Chunks[i].ID
		if offset, ok := here[id]; ok {
			im.seeds[id] = place{im.dev, offset}
		} else if !im.zeros[i] {
			wanted[id] = true
		}
	}
	return im.findSeeds(ctx, wanted)
}

// findSeeds looks for chunks on the running slot: on a little more than the new image's length, because what an earlier
// and larger release left behind there is as good.
func (im *image) findSeeds(ctx context.Context, wanted map[chunk.ID]bool) error {
	if len(wanted) == 0 {
		return nil
	}
	length := min(im.old.Size(), im.Data+im.Data/4+16<<20)
	old := io.NewSectionReader(im.old, 0, length)
	for c, err := range chunk.Split(old, im.index.Params) {
		if err != nil {
			return fmt.Errorf("read %s of the running slot: %w", im.Name, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !wanted[c.ID] {
			continue
		}
		im.seeds[c.ID] = place{im.old, c.Offset}
		if delete(wanted, c.ID); len(wanted) == 0 {
			return nil
		}
	}
	return nil
}

// job is a chunk to bring to all the places that lack it.
type job struct {
	ref    chunk.Ref
	places []int // chunk numbers
	size   int64 // of the file in the store; 0 when it is not known
	delta  *chunk.Delta
}

// jobs sorts the chunks that are not in place: by what it takes to get them.
func (im *image) jobs() (zero, local, remote []job) {
	order := map[chunk.ID]int{}
	var all []job
	for _, i := range im.needs {
		id := im.index.Chunks[i].ID
		n, known := order[id]
		if !known {
			n = len(all)
			order[id] = n
			all = append(all, im.job(i))
		}
		all[n].places = append(all[n].places, i)
	}
	for _, j := range all {
		if _, ok := im.seeds[j.ref.ID]; im.zeros[j.places[0]] {
			zero = append(zero, j)
		} else if ok {
			local = append(local, j)
		} else {
			remote = append(remote, j)
		}
	}
	return zero, local, remote
}

func (im *image) job(i int) job {
	j := job{ref: im.index.Chunks[i]}
	if im.sizes != nil {
		j.size = int64(im.sizes[i])
	}
	if d, ok := im.deltas[j.ref.ID]; ok && d.Offset+int64(d.Length) <= im.old.Size() {
		j.delta = &d
	}
	return j
}

// download is what j costs over the line, as far as it is known.
func (j job) download() int64 {
	switch {
	case j.delta != nil:
		return int64(j.delta.Size)
	case j.size > 0:
		return j.size
	}
	return int64(j.ref.Size)
}
