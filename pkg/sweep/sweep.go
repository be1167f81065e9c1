// Package sweep cuts a machine's power everywhere: from a recording of all that
// an upgrade wrote to the disk it makes every state that a cut can leave, and
// says of each which version the machine boots then, or that it boots none.
//
// # What a cut leaves
//
// A disk writes sectors of 512 bytes whole or not at all. What it was told
// before a flush is durable when the flush completes, and a write with FUA when
// the write completes. Of all other writes each sector may have reached the
// medium or not, in any order. So between two flushes a sector may hold what it
// held at the first or any version that was written to it since; and when both
// of two versions reached it, the newer one is there. Of the states between two
// flushes Sweep judges
//
//   - all, sector by sector, when there are few (Options.Exhaustive);
//   - otherwise every prefix of the writes, every set with one write missing,
//     every single write; or, of few writes, every subset;
//   - of every short write every number of its first sectors (Options.Torn),
//     with the writes before it and alone;
//   - and samples: a random moment, a random subset, some writes torn.
//
// Writes to CAIRN_DATA and behind the end of a root image decide nothing about
// what boots and are left out.
//
// # How a state is judged
//
// The partition tables and GRUB's own code must be there. The selector's model
// reads the FAT file systems as they are and starts a slot. That slot's boot
// files and its whole root must be those of one release. The selector's own
// write, the count of tries, is one more chance for a cut: the states after it
// are judged too, until it writes nothing more, so each verdict includes that
// of a machine that never gets further than its boot loader. The system that
// starts must be able to go on (Resume).
//
// # What is not here
//
// The order in a log is that of completion, and a flush counts when it
// completes. A write that completes while a flush is under way may not be
// covered by it but counts as if it were. Record with one request at a time
// where that matters (see Arguments).
//
// A state's verdict depends on a few regions of the disk. Their content is
// known by digests that follow each sector that changes, so a state costs
// microseconds unless it is new to the selector.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Options of a sweep. Zero values mean the defaults.
type Options struct {
	Releases []Release // that a machine may boot
	Selector Selector
	Resume   Resume // LegalState
	// Exhaustive is how many sectors, or writes, may be unflushed for all
	// their subsets to be judged: 10, at most 30.
	Exhaustive int
	// Torn is the length in sectors up to which a write is torn at each of
	// its sectors: 64.
	Torn int
	// Samples are drawn from the writes between two flushes, where these are
	// too many for all subsets: 1024.
	Samples int
	Seed    uint64
	// Workers share the states: 2.
	Workers int
	// Failures is how many bad states the report describes: 20.
	Failures int
	// Progress, unless it is nil, is called now and then, by one goroutine,
	// with the number of entries of the log that were passed, of all.
	Progress func(passed, all int)
}

func (o Options) withDefaults() (Options, error) {
	if o.Selector == nil || len(o.Releases) == 0 {
		return o, errors.New("no selector, or no release")
	}
	if o.Resume == nil {
		o.Resume = LegalState
	}
	for _, n := range []struct {
		value  *int
		normal int
	}{{&o.Exhaustive, 10}, {&o.Torn, 64}, {&o.Samples, 1024}, {&o.Workers, 2}, {&o.Failures, 20}} {
		if *n.value == 0 {
			*n.value = n.normal
		}
	}
	if o.Exhaustive < 1 || o.Exhaustive > 30 || o.Torn < 1 || o.Samples < 1 || o.Workers < 1 || o.Failures < 1 {
		return o, fmt.Errorf("options %d, %d, %d, %d, %d out of range", o.Exhaustive, o.Torn, o.Samples, o.Workers, o.Failures)
	}
	return o, nil
}

// Sweep judges the states that a power cut can leave of a recording. Its error
// is one of reading; what it found is in the report.
func Sweep(ctx context.Context, rec Recording, o Options) (Report, error) {
	began := time.Now()
	workers, err := newWorkers(rec, o)
	if err != nil {
		return Report{}, fmt.Errorf("sweep: %w", err)
	}
	errs := make([]error, len(workers))
	var wait sync.WaitGroup
	for i, w := range workers {
		wait.Go(func() { errs[i] = w.sweep(ctx) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return Report{}, fmt.Errorf("sweep: %w", err)
	}
	report := workers[0].report
	for _, w := range workers[1:] {
		report.add(w.report, w.o.Failures)
	}
	report.Time = time.Since(began)
	return report, nil
}

// survey finds what the disk consists of.
func survey(rec Recording, all []Release) (table, *regions, error) {
	base, err := readTable(rec.Base, rec.Size)
	if err != nil {
		return nil, nil, err
	}
	var sizes []int64
	for _, r := range all {
		if r.Root == nil || r.Size <= 0 || r.Size%SectorSize != 0 {
			return nil, nil, fmt.Errorf("release %s: a root of %d bytes", r.Version, r.Size)
		}
		sizes = append(sizes, r.Size/SectorSize)
	}
	g, err := newRegions(base, sizes)
	return base, g, err
}

// wholeRoots computes what the pieces of each slot's root are when it holds
// each of the releases.
func wholeRoots(rec Recording, base table, g *regions, h hasher, all []Release) (map[slot.Slot][][]digest, error) {
	targets := map[slot.Slot][][]digest{}
	was, is := make([]byte, 1<<20), make([]byte, 1<<20)
	for i, s := range []slot.Slot{slot.A, slot.B} {
		first := base[partition.RootANumber+i].from
		for _, r := range all {
			var pieces []digest
			at := int64(0)
			for _, end := range g.pieces[i] {
				if end*SectorSize > r.Size {
					break
				}
				var d digest
				for at < end {
					n := min(end-at, int64(len(is))/SectorSize)
					if err := errors.Join(readFull(r.Root, is[:n*SectorSize], at*SectorSize), readFull(rec.Base, was[:n*SectorSize], (first+at)*SectorSize)); err != nil {
						return nil, fmt.Errorf("root of release %s: %w", r.Version, err)
					}
					for j := range n {
						old, now := was[j*SectorSize:(j+1)*SectorSize], is[j*SectorSize:(j+1)*SectorSize]
						if string(old) != string(now) {
							d = d.xor(h.sector(first+at+j, old)).xor(h.sector(first+at+j, now))
						}
					}
					at += n
				}
				pieces = append(pieces, d)
			}
			targets[s] = append(targets[s], pieces)
		}
	}
	return targets, nil
}
