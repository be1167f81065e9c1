package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// run is one pass of the engine, from reading the channel to the reboot.
type run struct {
	o        Options
	request  Request
	plan     Plan
	manifest release.Manifest
	boot     *image
	root     *image
	guard    *guard
	codec    *chunk.Codec
	attempt  history.Attempt
	state    history.State
	transfer history.Transfer
}

func newRun(o Options, q Request) *run {
	return &run{o: o, request: q, plan: Plan{From: o.Running.Info, Slot: o.Running.Slot.Other(), NoReboot: q.NoReboot}}
}

// prepare makes the plan. It writes nothing.
func (r *run) prepare(ctx context.Context) error {
	r.o.Progress(Progress{Step: "read the release's lists"})
	if err := r.resolve(ctx); err != nil || r.plan.Current || len(r.plan.Refused) > 0 {
		return err
	}
	var err error
	if r.boot, err = r.open(ctx, release.BootImage); err != nil || len(r.plan.Refused) > 0 {
		return err
	}
	if r.root, err = r.open(ctx, release.RootImage); err != nil || len(r.plan.Refused) > 0 {
		return err
	}
	r.guard = &guard{boot: r.boot.dev, written: &r.transfer.Written}
	for _, im := range []*image{r.boot, r.root} {
		r.o.Progress(Progress{Step: "read both slots: " + im.Name})
		if err := im.survey(ctx); err != nil {
			return err
		}
		r.plan.Images = append(r.plan.Images, im.count())
		r.plan.Estimated = r.plan.Estimated || im.sizes == nil
	}
	return nil
}

// open gets one image's lists and partitions. The inactive slot is opened for writing; the running one never is.
func (r *run) open(ctx context.Context, name string) (*image, error) {
	m := r.manifest.Image(name)
	im, n, err := load(ctx, r.o.Trust, m, r.o.Running.Version)
	r.transfer.Downloaded += n
	if err != nil {
		return nil, err
	}
	if im.dev, err = r.o.Slots.Open(r.plan.Slot, name, true); err != nil {
		return nil, err
	}
	if im.old, err = r.o.Slots.Open(r.o.Running.Slot, name, false); err != nil {
		return nil, errors.Join(err, im.dev.Close())
	}
	if m.Size < headSize {
		return im, fmt.Errorf("the %s image has %d bytes: the release is inconsistent", name, m.Size)
	}
	if size := im.dev.Size(); m.Size > size {
		r.refuse("the %s image has %d bytes and its partition %d: install this release anew instead", name, m.Size, size)
	}
	return im, nil
}

func (r *run) close() error {
	var errs []error
	for _, im := range []*image{r.boot, r.root} {
		if im != nil {
			errs = append(errs, im.dev.Close(), im.old.Close())
		}
	}
	if r.codec != nil {
		errs = append(errs, r.codec.Close())
	}
	return errors.Join(errs...)
}

// begin writes down that an upgrade is under way, before the slot is touched.
func (r *run) begin() error {
	var err error
	if r.codec, err = chunk.NewCodec(); err != nil {
		return err
	}
	for _, p := range r.plan.Images {
		r.transfer.Present += p.Present
	}
	st, found, err := r.o.History.State()
	if err != nil {
		return err
	}
	if found && st.Version == r.plan.To.Version {
		if r.attempt, found, err = r.o.History.Attempt(st.Attempt); err != nil {
			return err
		}
		if found {
			r.attempt.Resumed++
			r.attempt.Armed = time.Time{} // it was about to be, else there would be a trial to judge
			r.transfer.Downloaded += r.attempt.Transfer.Downloaded
			r.transfer.Written += r.attempt.Transfer.Written
			return r.step(history.StepPrepare)
		}
	} else if found {
		end := history.End{Verdict: history.Abandoned, Text: "version " + r.plan.To.Version + " was wanted instead", Time: r.o.Now()}
		if err := r.o.History.Close(st.Attempt, end); err != nil && !errors.Is(err, history.ErrNoAttempt) {
			return err
		}
	}
	r.attempt, err = r.o.History.Begin(history.Attempt{From: r.plan.From, To: r.plan.To, Slot: r.plan.Slot, Started: r.o.Now()})
	if err != nil {
		return err
	}
	return r.step(history.StepPrepare)
}

// step writes down what is done next.
func (r *run) step(s history.Step) error {
	r.attempt.Transfer = r.transfer
	if err := r.o.History.Save(r.attempt); err != nil {
		return err
	}
	r.state = history.State{
		Attempt: r.attempt.ID, Version: r.plan.To.Version, Slot: r.plan.Slot, Step: s, NoReboot: r.request.NoReboot,
		Sequence: r.state.Sequence, Since: r.o.Now().UTC(),
	}
	r.o.Log.Info("upgrade goes on", "version", r.state.Version, "slot", string(r.state.Slot), "step", string(s), "attempt", r.state.Attempt)
	return r.o.History.SetState(r.state)
}

// note keeps why an upgrade stopped, for whoever looks at its state.
func (r *run) note(cause error) error {
	if cause == nil {
		return nil
	}
	cause = fmt.Errorf("upgrade to %s: %w", r.plan.To.Version, cause)
	_, found, err := r.o.History.State()
	if err != nil || !found { // the attempt was ended meanwhile
		return errors.Join(cause, err)
	}
	r.attempt.Transfer = r.transfer
	r.state.Problem = cause.Error()
	return errors.Join(cause, r.o.History.Save(r.attempt), r.o.History.SetState(r.state))
}

// upgrade does it all.
func (r *run) upgrade(ctx context.Context) error {
	if err := r.step(history.StepWrite); err != nil {
		return err
	}
	if err := r.writeRoot(ctx); err != nil {
		return err
	}
	if err := r.writeBoot(ctx); err != nil {
		return err
	}
	if err := r.step(history.StepReady); err != nil {
		return err
	}
	if err := r.snapshot(ctx); err != nil {
		return err
	}
	if err := r.arm(ctx); err != nil {
		return err
	}
	return r.leave(ctx)
}

// errTree says that the data of the root do not add up to the manifest's root hash.
var errTree = errors.New("the verity tree is not the manifest's")

// writeRoot makes the root partition what the manifest says. What reads back wrong is written once more.
func (r *run) writeRoot(ctx context.Context) error {
	im := r.root
	w := &writer{dev: im.dev, guard: r.guard, written: &r.transfer.Written}
	for again := false; ; again = true {
		if err := r.fill(ctx, im, w); err != nil {
			return err
		}
		err := r.finishRoot(ctx, w)
		if err == nil || !errors.Is(err, errTree) && !errors.Is(err, ErrMedium) {
			return err
		}
		if err := r.lookAgain(ctx, im, err); err != nil {
			return err
		}
		if errors.Is(err, errTree) && len(im.needs) == 0 {
			return fmt.Errorf("%w although all chunks are right: the release is inconsistent", err)
		}
		if again {
			return errors.Join(err, ErrMedium)
		}
	}
}

// lookAgain finds out what of an image is not in place on the medium, after cause showed that something is not.
func (r *run) lookAgain(ctx context.Context, im *image, cause error) error {
	r.o.Log.Warn("a partition does not hold what was written to it, writing what differs again", "image", im.Name, "cause", cause)
	if err := im.dev.Forget(); err != nil {
		return err
	}
	return im.survey(ctx)
}

// finishRoot writes the verity tree behind the data and reads all of it back.
func (r *run) finishRoot(ctx context.Context, w *writer) error {
	im := r.root
	if im.Data < im.Size {
		r.o.Progress(Progress{Step: "compute the verity tree", Transfer: r.transfer})
		tree, rootHash, err := verityTree(ctx, im.dev, im.Data)
		if err != nil {
			return err
		}
		if rootHash != im.RootHash || im.Data+int64(len(tree)) != im.Size {
			return fmt.Errorf("%w: root hash %s, %d bytes of tree; want %s and %d", errTree, rootHash, len(tree), im.RootHash, im.Size-im.Data)
		}
		if err := w.write(tree, im.Data); err != nil {
			return fmt.Errorf("write the verity tree: %w", err)
		}
	}
	return r.readBack(ctx, im, nil)
}

// readBack compares the image on the medium with the manifest's digest; head, when it is not nil, stands for its first
// bytes.
func (r *run) readBack(ctx context.Context, im *image, head []byte) error {
	m := r.meter("read back "+im.Name, im.Size)
	sum, err := digest(ctx, im.dev, im.Size, head, m.at)
	if err != nil {
		return fmt.Errorf("read back %s: %w", im.Name, err)
	}
	if sum != im.SHA256 {
		return fmt.Errorf("read back %s: SHA-256 %s instead of %s: %w", im.Name, sum, im.SHA256, ErrMedium)
	}
	return nil
}

// writeBoot makes the boot partition what the manifest says, its head last.
func (r *run) writeBoot(ctx context.Context) error {
	im := r.boot
	if r.guard.done {
		if err := im.survey(ctx); err != nil { // its head is gone since
			return err
		}
	}
	w := &writer{dev: im.dev, guard: r.guard, written: &r.transfer.Written, head: make([]byte, headSize)}
	if _, err := im.dev.ReadAt(w.head, 0); err != nil {
		return fmt.Errorf("read boot: %w", err)
	}
	for again := false; ; again = true {
		if err := r.fill(ctx, im, w); err != nil {
			return err
		}
		err := r.readBack(ctx, im, w.head)
		if err == nil {
			break
		}
		if again || !errors.Is(err, ErrMedium) {
			return err
		}
		if err := errors.Join(r.guard.invalidate(), r.lookAgain(ctx, im, err)); err != nil {
			return err
		}
	}
	if err := writeHead(im.dev, w.head, &r.transfer.Written); err != nil {
		return fmt.Errorf("write boot: %w", err)
	}
	return nil
}

// fill brings every chunk that is not in place: zeros, what the running slot has, and then what has to be fetched.
func (r *run) fill(ctx context.Context, im *image, w *writer) error {
	m := r.meter("write "+im.Name, im.Data-im.count().Present)
	zero, local, remote := im.jobs()
	put := func(j job, data []byte) error {
		for _, i := range j.places {
			if err := w.write(data, im.offsets[i]); err != nil {
				return fmt.Errorf("write %s: %w", im.Name, err)
			}
			m.add(int64(len(data)))
		}
		return nil
	}
	for _, j := range append(zero, local...) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, ok := im.take(j)
		if !ok {
			remote = append(remote, j)
			continue
		}
		if !im.zeros[j.places[0]] {
			r.transfer.Reused += int64(len(data) * len(j.places))
		}
		if err := put(j, data); err != nil {
			return err
		}
	}
	err := fetch(ctx, r.o.Chunks, remote, im.base, func(f fetched) error {
		data, err := r.chunkOf(ctx, im, f)
		if err != nil {
			return err
		}
		return put(f.job, data)
	})
	return errors.Join(err, w.sync())
}

// take returns a chunk that this machine has, until the next call; false when it has it no more.
func (im *image) take(j job) ([]byte, bool) {
	data := im.buf[:j.ref.Size]
	if im.zeros[j.places[0]] {
		clear(data)
		return data, true
	}
	from := im.seeds[j.ref.ID]
	_, err := from.dev.ReadAt(data, from.offset)
	return data, err == nil && chunk.Sum(data) == j.ref.ID
}

func (r *run) snapshot(ctx context.Context) error {
	if r.o.Callbacks.Snapshot == nil {
		return nil
	}
	r.o.Progress(Progress{Step: "take a snapshot of the store", Transfer: r.transfer})
	name, err := r.o.Callbacks.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot of the store: %w", err)
	}
	r.attempt.Snapshot = name
	return nil
}

// arm tells the boot selector to try the slot. The number of the state that does so is kept first, so that afterwards
// it can be told whether it happened.
func (r *run) arm(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now, err := r.o.Bootloader.Read()
	if err != nil {
		return fmt.Errorf("arm: %w", err)
	}
	next, err := now.Arm(r.plan.Slot, r.o.Tries)
	if err != nil {
		return err
	}
	r.state.Sequence = next.Seq
	r.attempt.Armed = r.o.Now()
	if err := r.step(history.StepArm); err != nil {
		return err
	}
	if _, err := r.o.Bootloader.Arm(r.plan.Slot, r.o.Tries); err != nil {
		return fmt.Errorf("arm: %w", err)
	}
	return r.step(history.StepArmed)
}

// leave drains the node and asks for the reboot.
func (r *run) leave(ctx context.Context) error {
	r.o.Progress(Progress{Step: "armed", Transfer: r.transfer})
	if r.request.NoReboot {
		return nil
	}
	if drain := r.o.Callbacks.Drain; drain != nil {
		r.o.Progress(Progress{Step: "drain", Transfer: r.transfer})
		if err := drain(ctx); err != nil {
			return r.disarm(fmt.Errorf("drain: %w", err))
		}
	}
	if r.o.Callbacks.Reboot == nil {
		return nil
	}
	r.o.Progress(Progress{Step: StepReboot, Transfer: r.transfer})
	if err := r.o.Callbacks.Reboot(ctx); err != nil {
		return r.disarm(fmt.Errorf("reboot: %w", err))
	}
	return nil
}

// disarm takes arming back when the machine cannot leave: a power cut at noon should not bring a release that was meant
// for the night. The slot stays whole, so the next run has little to do.
func (r *run) disarm(cause error) error {
	st, err := r.o.Bootloader.RollBack()
	if err != nil {
		return errors.Join(cause, fmt.Errorf("disarm: %w", err))
	}
	if st.Trial != slot.None {
		return errors.Join(cause, fmt.Errorf("disarm: %s", st))
	}
	r.attempt.Armed, r.state.Sequence = time.Time{}, 0
	return errors.Join(cause, r.step(history.StepReady))
}
