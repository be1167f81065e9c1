package update

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cairn-os/cairn/pkg/chunk"
)

// fetchers is how many files are asked for at a time: enough that a line with a long way does not stand idle between
// small ones.
const fetchers = 4

// fetched is what came of a job's file.
type fetched struct {
	job  job
	data []byte
	err  error
}

// fetch gets the jobs' files, several at a time, and hands each to done in whatever order they come. It stops at done's
// first error.
func fetch(ctx context.Context, c Chunks, jobs []job, base chunk.Base, done func(fetched) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	queue, results := make(chan job), make(chan fetched)
	for range min(fetchers, len(jobs)) {
		wg.Go(func() {
			for j := range queue {
				f := fetched{job: j}
				f.data, f.err = c.Get(ctx, j.path(base), j.limit())
				select {
				case results <- f:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Go(func() {
		defer close(queue)
		for _, j := range jobs {
			select {
			case queue <- j:
			case <-ctx.Done():
				return
			}
		}
	})
	for range jobs {
		select {
		case f := <-results:
			if err := done(f); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (j job) path(base chunk.Base) string {
	if j.delta != nil {
		return j.ref.ID.DeltaPath(base)
	}
	return j.ref.ID.Path()
}

// limit is the most that the file may have: what the signed list says, where there is one.
func (j job) limit() int64 {
	switch {
	case j.delta != nil:
		return int64(j.delta.Size)
	case j.size > 0:
		return j.size
	}
	return chunk.MaxStored
}

// undelta makes the chunk out of its delta and the running slot.
func (im *image) undelta(f fetched) ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	dictionary := make([]byte, f.job.delta.Length)
	if _, err := im.old.ReadAt(dictionary, f.job.delta.Offset); err != nil {
		return nil, err
	}
	return chunk.DecodeDelta(f.data, dictionary, f.job.ref)
}

// chunkOf returns the bytes that f's job wants. What a delta cannot give, and what arrived altered, is asked for once
// more, whole.
func (r *run) chunkOf(ctx context.Context, im *image, f fetched) ([]byte, error) {
	r.transfer.Downloaded += int64(len(f.data))
	var problem error
	if f.job.delta != nil {
		data, err := im.undelta(f)
		if err == nil {
			return data, nil
		}
		problem = err
	} else {
		if f.err != nil {
			return nil, fmt.Errorf("download chunk %s of %s: %w", f.job.ref.ID, im.Name, f.err)
		}
		data, err := r.codec.Decompress(f.data, f.job.ref)
		if err == nil {
			return data, nil
		}
		problem = err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r.o.Log.Warn("a chunk did not arrive as it should, asking for it once more", "image", im.Name, "chunk", f.job.ref.ID.String(),
		"delta", f.job.delta != nil, "cause", problem)
	j := f.job
	j.delta = nil
	stored, err := r.o.Chunks.Get(ctx, j.path(im.base), j.limit())
	if err != nil {
		return nil, fmt.Errorf("download chunk %s of %s: %w", j.ref.ID, im.Name, err)
	}
	r.transfer.Downloaded += int64(len(stored))
	data, err := r.codec.Decompress(stored, j.ref)
	if errors.Is(err, chunk.ErrMismatch) {
		err = fmt.Errorf("the source holds something else, copy the release directory there anew: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("download chunk %s of %s: %w", j.ref.ID, im.Name, err)
	}
	return data, nil
}
