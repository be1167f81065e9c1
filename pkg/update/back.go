package update

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Back goes back to the release that ran before the one that runs and is confirmed now, at an operator's word: it is still
// in the other slot. Nothing is downloaded. The release is tried as any other and must confirm itself; the one that runs
// now goes to quarantine, or the next look at the channel would bring it again. What it needs to know is in the history:
// that the last attempt was the one that brought the running release, so the other slot was not written since. Whether
// that slot is in order is seen when it boots: by the boot selector's digests and by dm-verity.
func (e *Engine) Back(ctx context.Context, q Request) (Plan, error) {
	if !e.mu.TryLock() {
		return Plan{}, ErrBusy
	}
	defer e.mu.Unlock()
	r := newRun(e.o, q)
	if err := r.resolveBack(ctx); err != nil {
		return r.plan, err
	}
	if len(r.plan.Refused) > 0 {
		return r.plan, r.plan.refusal()
	}
	if r.plan.Resumes != "" {
		end := history.End{Verdict: history.Abandoned, Text: "begun anew", Time: e.o.Now()}
		if err := e.o.History.Close(r.plan.Resumes, end); err != nil {
			return r.plan, err
		}
	}
	var err error
	r.attempt, err = e.o.History.Begin(history.Attempt{From: r.plan.From, To: r.plan.To, Slot: r.plan.Slot, Started: e.o.Now()})
	if err != nil {
		return r.plan, err
	}
	return r.plan, r.note(r.goBack(ctx))
}

// resolveBack finds out what is in the other slot.
func (r *run) resolveBack(ctx context.Context) error {
	r.plan.To.Version = "the release before"
	if err := r.refuseState(""); err != nil || len(r.plan.Refused) > 0 {
		return err
	}
	st, found, err := r.o.History.State()
	if err != nil {
		return err
	}
	all, err := r.o.History.Attempts()
	if err != nil {
		return err
	}
	// Ways back that led nowhere wrote nothing to the slot. An upgrade has counted its lists' bytes before it writes.
	for len(all) > 0 && (all[0].Verdict == history.Abandoned || all[0].ID == st.Attempt) && all[0].Transfer.Downloaded == 0 {
		if all[0].ID == st.Attempt {
			found, r.plan.Resumes = false, st.Attempt
		}
		all = all[1:]
	}
	running := r.o.Running
	switch {
	case found:
		r.refuse("an upgrade to %s is under way: cancel it first", st.Version)
		return nil
	case len(all) == 0 || all[0].Verdict != history.Confirmed || all[0].To.Version != running.Version || all[0].Slot != running.Slot:
		r.refuse("slot %s is not known to hold the release that ran before: say which version you want with \"cairnctl upgrade --to\"", r.plan.Slot)
		return nil
	}
	r.plan.To = all[0].From
	if err := r.refuseVersion(r.plan.To.Version); err != nil || len(r.plan.Refused) > 0 {
		return err
	}
	if r.o.Callbacks.Check != nil {
		r.plan.Refused, err = r.o.Callbacks.Check(ctx, release.Manifest{Info: r.plan.To, Target: running.Target})
	}
	return err
}

func (r *run) goBack(ctx context.Context) error {
	if err := r.step(history.StepReady); err != nil {
		return err
	}
	bad := history.Quarantine{
		Version: r.plan.From.Version, Reason: history.Operator, Text: "went back to " + r.plan.To.Version, Attempt: r.attempt.ID, Time: r.o.Now(),
	}
	if err := r.o.History.AddQuarantine(bad); err != nil {
		return err
	}
	err := r.snapshot(ctx)
	if err == nil {
		err = r.arm(ctx)
	}
	if err == nil {
		err = r.leave(ctx)
	}
	if err == nil {
		return nil
	}
	if now, readErr := r.o.Bootloader.Read(); readErr != nil || now.Trial != slot.None {
		return errors.Join(err, readErr) // it may still come to the trial
	}
	// The machine stays where it is: nothing is held against that release, and there is nothing to go on with.
	end := history.End{Verdict: history.Abandoned, Text: err.Error(), Time: r.o.Now()}
	if undo := errors.Join(r.o.History.Release(bad.Version), r.o.History.Close(r.attempt.ID, end)); undo != nil {
		return fmt.Errorf("%w; take it back: %w", err, undo)
	}
	return err
}
