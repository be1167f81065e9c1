package releasedir

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// image is one image of the release at hand.
type image struct {
	release.Image
	content []byte // Data bytes
	index   chunk.Index
	offsets []int64 // of the index's chunks
	sizes   chunk.Sizes
}

// part returns the bytes of a chunk.
func (i *image) part(n int) []byte {
	return i.content[i.offsets[n] : i.offsets[n]+int64(i.index.Chunks[n].Size)]
}

// firsts returns the numbers of the chunks that are stored: of those that
// repeat, the first, and none of zeros.
func (i *image) firsts() []int {
	seen, zeros := map[chunk.ID]bool{}, i.index.Zeros()
	var numbers []int
	for n, c := range i.index.Chunks {
		if !seen[c.ID] && !zeros[n] {
			numbers = append(numbers, n)
		}
		seen[c.ID] = true
	}
	return numbers
}

// store writes the chunks, and adds the index and the sizes to the files to be
// signed.
func (i *image) store(ctx context.Context, store *chunk.Store, files map[string][]byte) (err error) {
	if i.index, err = chunk.MakeIndex(bytes.NewReader(i.content), chunk.DefaultParams()); err != nil {
		return err
	}
	var at int64
	for _, c := range i.index.Chunks {
		i.offsets = append(i.offsets, at)
		at += int64(c.Size)
	}
	i.sizes = make(chunk.Sizes, len(i.index.Chunks))
	firsts := i.firsts()
	err = inParallel(ctx, firsts, func(c *chunk.Codec, n int) (err error) {
		i.sizes[n], err = store.Put(c, i.index.Chunks[n].ID, i.part(n))
		return err
	})
	if err != nil {
		return err
	}
	size := map[chunk.ID]int{}
	for _, n := range firsts {
		size[i.index.Chunks[n].ID] = i.sizes[n]
	}
	for n, c := range i.index.Chunks {
		i.sizes[n] = size[c.ID]
	}
	if files[i.Index], err = i.index.Encode(); err != nil {
		return err
	}
	files[chunk.SizesPath(i.Index)], err = i.sizes.Encode()
	return err
}

// full is the download of all chunks.
func (i *image) full() (sum int64) {
	for _, n := range i.firsts() {
		sum += int64(i.sizes[n])
	}
	return sum
}

// addDeltas adds the deltas against a version that machines come from, and what
// they weigh to u.
func (i *image) addDeltas(ctx context.Context, store *chunk.Store, b *base, files map[string][]byte, u *Update) error {
	have, err := b.chunks(i.index.Params)
	if err != nil {
		return err
	}
	missing := []int{}
	for _, n := range i.firsts() {
		if !have[i.index.Chunks[n].ID] {
			missing = append(missing, n)
			u.Chunks += int64(i.sizes[n])
			u.Deltas += int64(i.sizes[n])
		}
	}
	absent := map[chunk.ID]bool{}
	for _, n := range missing {
		absent[i.index.Chunks[n].ID] = true
	}
	for _, c := range i.index.Chunks {
		if !absent[c.ID] {
			u.Reused += int64(c.Size)
		}
	}
	old, err := b.image(i.Name)
	if err != nil {
		return err
	}
	list := chunk.Deltas{Base: old.base}
	var mu sync.Mutex
	err = inParallel(ctx, missing, func(_ *chunk.Codec, n int) error {
		d, ok, err := i.delta(store, old, n)
		mu.Lock()
		defer mu.Unlock()
		if ok {
			list.List = append(list.List, d)
			u.Deltas -= int64(i.sizes[n] - d.Size)
		}
		return err
	})
	if err != nil || len(list.List) == 0 {
		return err
	}
	slices.SortFunc(list.List, func(a, b chunk.Delta) int { return a.Chunk - b.Chunk })
	files[chunk.DeltasPath(i.Index, b.manifest.Version)], err = list.Encode()
	return err
}

// delta stores a delta of chunk n if that pays: by a twentieth, for a delta
// costs a machine memory and another read.
func (i *image) delta(store *chunk.Store, old *baseImage, n int) (d chunk.Delta, ok bool, err error) {
	data := i.part(n)
	from, to, ok := old.similar.place(data)
	if !ok {
		return d, false, nil
	}
	delta, err := chunk.EncodeDelta(data, old.content[from:to])
	if err != nil {
		return d, false, err
	}
	if len(delta) > i.sizes[n]*19/20 {
		return d, false, nil
	}
	d = chunk.Delta{Chunk: n, Offset: int64(from), Length: to - from, Size: len(delta)}
	return d, true, store.PutDelta(old.base, i.index.Chunks[n].ID, delta)
}

// inParallel calls work for all numbers, on all processors.
func inParallel(ctx context.Context, numbers []int, work func(c *chunk.Codec, n int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for _, n := range numbers {
			select {
			case next <- n:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() (err error) {
			c, err := chunk.NewCodec()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			for n := range next {
				if err := work(c, n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func digest(text string) (sum [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(sum) {
		return sum, fmt.Errorf("digest %q: not that of SHA-256", text)
	}
	return [32]byte(b), nil
}
