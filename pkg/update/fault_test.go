package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// TestSourceFaults lets the server fail in every way, and then work again.
func TestSourceFaults(t *testing.T) {
	boom := errors.New("connection reset by peer")
	for name, tt := range map[string]struct {
		fault func(n int, data []byte) ([]byte, error) // of the n-th chunk that is asked for
		want  error
		text  string
	}{
		"dies":       {func(n int, data []byte) ([]byte, error) { return data, onlyFrom(n, 8, boom) }, boom, "download chunk"},
		"missing":    {func(n int, data []byte) ([]byte, error) { return data, onlyFrom(n, 8, os.ErrNotExist) }, os.ErrNotExist, "download chunk"},
		"altered":    {func(_ int, data []byte) ([]byte, error) { data[len(data)/2] ^= 1; return data, nil }, chunk.ErrMismatch, "the source holds something else"},
		"truncated":  {func(_ int, data []byte) ([]byte, error) { return data[:len(data)/2], nil }, chunk.ErrMismatch, "copy the release directory there anew"},
		"HTML":       {func(int, []byte) ([]byte, error) { return []byte("<html>log in"), nil }, chunk.ErrMismatch, "the source holds something else"},
		"other file": {func(int, []byte) ([]byte, error) { return nil, nil }, chunk.ErrMismatch, "the source holds something else"},
		"longer":     {func(_ int, data []byte) ([]byte, error) { return append(data, 0), nil }, nil, "want at most"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := clone(w.disk.parts)
			n := 0
			w.get = func(ctx context.Context, path string) ([]byte, error) {
				data, err := w.server(ctx, path)
				if err != nil {
					return nil, err
				}
				n++
				return tt.fault(n, data)
			}
			w.single()
			_, err := New(w.o).Run(t.Context(), Request{})
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error = %v; want %v with %q", err, tt.want, tt.text)
			}
			w.wantUnarmed(before)
			st, found, err := w.o.History.State()
			if err != nil || !found || st.Step != history.StepWrite || !strings.Contains(st.Problem, tt.text) {
				t.Errorf("state %+v, %v, %v", st, found, err)
			}
			w.get = nil
			plan, err := w.start().Run(t.Context(), Request{})
			if err != nil || plan.Resumes != st.Attempt {
				t.Fatalf("going on: %v; attempt %q", err, plan.Resumes)
			}
			w.wantWhole(before)
		})
	}
}

func onlyFrom(n, from int, err error) error {
	if n < from {
		return nil
	}
	return err
}

// wantUnarmed checks that an upgrade that stopped left nothing that could start.
func (w *world) wantUnarmed(before map[string][]byte) {
	w.t.Helper()
	if w.disk.state.Trial != slot.None {
		w.t.Errorf("armed: %s", w.disk.state)
	}
	if err := w.judge(before, w.disk.parts, w.disk.state); err != nil {
		w.t.Error(err)
	}
}

// TestOneBadAnswerIsForgiven: what a proxy garbled once is asked for again.
func TestOneBadAnswerIsForgiven(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	asked := map[string]int{}
	w.get = func(ctx context.Context, path string) ([]byte, error) {
		if asked[path]++; asked[path] == 1 {
			return []byte("garbled"), nil
		}
		return w.server(ctx, path)
	}
	w.single()
	if _, err := New(w.o).Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
}

func TestBadLists(t *testing.T) {
	index := func(w *world) string { return w.manifest.Images[1].Index }
	for name, tt := range map[string]struct {
		change func(w *world)
		want   error
		text   string
	}{
		"no index":       {func(w *world) { delete(w.targets, index(w)) }, os.ErrNotExist, "index of root"},
		"damaged index":  {func(w *world) { w.targets[index(w)] = []byte("x") }, chunk.ErrIndex, "index of root"},
		"other index":    {func(w *world) { w.targets[index(w)] = w.targets[w.manifest.Images[0].Index] }, nil, "the release is inconsistent"},
		"damaged sizes":  {func(w *world) { w.targets[chunk.SizesPath(index(w))] = nil }, chunk.ErrList, "sizes of root"},
		"damaged deltas": {func(w *world) { w.targets[chunk.DeltasPath(index(w), "1.0.0")] = []byte("CAIRNDL1") }, chunk.ErrList, "deltas of root from 1.0.0"},
		"other deltas": {func(w *world) {
			data, err := chunk.Deltas{Base: chunk.Base{Version: "0.9.0"}}.Encode()
			if err != nil {
				t.Fatal(err)
			}
			w.targets[chunk.DeltasPath(index(w), "1.0.0")] = data
		}, nil, "they lean on version 0.9.0"},
	} {
		w := newWorld(t)
		before := clone(w.disk.parts)
		tt.change(w)
		_, err := New(w.o).Run(t.Context(), Request{})
		if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: error = %v; want %v with %q", name, err, tt.want, tt.text)
		}
		w.wantUnarmed(before)
		if len(w.disk.log) > 0 || len(files(t, w.upgrade)) > 0 {
			t.Errorf("%s: something was written", name)
		}
	}
}

func TestInconsistentRootHash(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	w.manifest.Images[1].RootHash = strings.Repeat("0", 64)
	if _, err := New(w.o).Run(t.Context(), Request{}); err == nil || !strings.Contains(err.Error(), "the release is inconsistent") || errors.Is(err, ErrMedium) {
		t.Errorf("error = %v", err)
	}
	w.wantUnarmed(before)
}

func TestNoSizes(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	delete(w.targets, chunk.SizesPath(w.manifest.Images[1].Index))
	plan, err := New(w.o).Run(t.Context(), Request{})
	if err != nil || !plan.Estimated || !strings.Contains(plan.String(), "less may be downloaded") {
		t.Errorf("%v\n%s", err, plan)
	}
	w.wantWhole(before)
}

// TestMedium lets the disk lose what was written to it.
func TestMedium(t *testing.T) {
	for name, tt := range map[string]struct {
		part   string
		offset int64
		heals  bool
	}{
		"root data":       {"root-b", 100_000, false},
		"root tree":       {"root-b", rootBlocks*verityBlock + verityBlock + 100, false},
		"root heals":      {"root-b", 200_001, true},
		"boot":            {"boot-b", 50_000, false},
		"boot heals":      {"boot-b", 60_000, true},
		"head of boot":    {"boot-b", 100, false},
		"boot after zero": {"boot-b", 4095, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := clone(w.disk.parts)
			reads := 0
			w.disk.corrupt = func(part string, p []byte, offset int64) {
				if at := tt.offset - offset; part == tt.part && at >= 0 && at < int64(len(p)) {
					if reads++; !tt.heals || reads == 1 {
						p[at] ^= 0x80
					}
				}
			}
			_, err := New(w.o).Run(t.Context(), Request{})
			if tt.heals {
				if err != nil {
					t.Fatal(err)
				}
				w.wantWhole(before)
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, ErrMedium) {
				t.Errorf("error = %v; want ErrMedium", err)
			}
			w.wantUnarmed(before)
			w.disk.corrupt = nil
			if _, err := w.start().Run(t.Context(), Request{}); err != nil {
				t.Fatal(err)
			}
			w.wantWhole(before)
		})
	}
}

// TestDiskErrors fails each write and each sync in turn.
func TestDiskErrors(t *testing.T) {
	boom := errors.New("input/output error")
	events := len(newWorld(t).record()) - 1 - len([]string{"snapshot", "drain", "reboot"})
	for n := 0; n < events; n += 1 + n/8 {
		w := newWorld(t)
		before := clone(w.disk.parts)
		count := 0
		w.disk.fault = func(event) error {
			if count++; count == n+1 {
				return boom
			}
			return nil
		}
		if _, err := New(w.o).Run(t.Context(), Request{}); !errors.Is(err, boom) {
			t.Errorf("event %d failed: %v; want %v", n, err, boom)
		}
		w.wantUnarmed(before)
		if _, err := w.start().Run(t.Context(), Request{}); err != nil {
			t.Errorf("event %d failed: going on: %v", n, err)
		}
		w.wantWhole(before)
	}
}

// TestNoRoomForHistory: an upgrade that cannot be written down does not begin.
func TestNoRoomForHistory(t *testing.T) {
	w := newWorld(t)
	if err := os.RemoveAll(filepath.Join(w.upgrade, "history")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.upgrade, "history"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(w.o).Run(t.Context(), Request{}); err == nil {
		t.Error("no error")
	}
	if len(w.disk.log) > 0 {
		t.Error("the slot was touched")
	}
}

// TestRoomEndsBeforeArming: a slot that is whole is not armed when that cannot be written down.
func TestRoomEndsBeforeArming(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	state := filepath.Join(w.upgrade, "state.json")
	w.o.Callbacks.Snapshot = func(context.Context) (string, error) {
		return "", errors.Join(os.Remove(state), os.MkdirAll(filepath.Join(state, "x"), 0o700))
	}
	if _, err := New(w.o).Run(t.Context(), Request{}); err == nil {
		t.Error("no error")
	}
	w.wantUnarmed(before)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if _, err := w.start().Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
}

func TestCancelledRun(t *testing.T) {
	why := errors.New("cairnd ends")
	for _, at := range []int{1, 5, 20} {
		w := newWorld(t)
		before := clone(w.disk.parts)
		ctx, cancel := context.WithCancelCause(t.Context())
		n := 0
		w.get = func(ctx context.Context, path string) ([]byte, error) {
			if n++; n == at {
				cancel(why)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return w.server(ctx, path)
		}
		w.single()
		if _, err := New(w.o).Run(ctx, Request{}); !errors.Is(err, why) {
			t.Errorf("cancelled at chunk %d: %v; want %v", at, err, why)
		}
		w.wantUnarmed(before)
		w.get = nil
		if _, err := w.start().Run(t.Context(), Request{}); err != nil {
			t.Fatal(err)
		}
		w.wantWhole(before)
	}
}

func TestCallbackErrors(t *testing.T) {
	boom := errors.New("boom")
	fail := func(context.Context) error { return boom }
	for name, tt := range map[string]struct {
		set  func(c *Callbacks)
		step history.Step
		log  []string // changes of the boot selector
	}{
		"snapshot": {func(c *Callbacks) { c.Snapshot = func(context.Context) (string, error) { return "", boom } }, history.StepReady, nil},
		"drain": {func(c *Callbacks) { c.Drain = fail }, history.StepReady,
			[]string{"#2: slot a confirmed, slot b on trial with 3 tries left", "#3: slot a confirmed"}},
		"reboot": {func(c *Callbacks) { c.Reboot = fail }, history.StepReady,
			[]string{"#2: slot a confirmed, slot b on trial with 3 tries left", "#3: slot a confirmed"}},
	} {
		w := newWorld(t)
		before := clone(w.disk.parts)
		tt.set(&w.o.Callbacks)
		if _, err := New(w.o).Run(t.Context(), Request{}); !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
		w.wantUnarmed(before)
		var states []string
		for _, e := range w.disk.log {
			if e.part == "" && e.call == "" {
				states = append(states, e.state.String())
			}
		}
		if diff := cmp.Diff(tt.log, states); diff != "" {
			t.Errorf("%s: boot selector (-want +got):\n%s", name, diff)
		}
		st, found, err := w.o.History.State()
		if err != nil || !found || st.Step != tt.step || st.WasArmed(w.disk.state) || !strings.Contains(st.Problem, "boom") {
			t.Errorf("%s: %+v, %v, %v", name, st, found, err)
		}
		if _, err := w.start().Run(t.Context(), Request{}); err != nil {
			t.Errorf("%s: going on: %v", name, err)
		}
		w.wantWhole(before)
	}
}

// TestAnotherVersionIsWanted gives up what was under way.
func TestAnotherVersionIsWanted(t *testing.T) {
	w := newWorld(t)
	old := next
	old.Version = "1.0.7"
	a, err := w.o.History.Begin(history.Attempt{From: running.Info, To: old, Slot: slot.B})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.o.History.SetState(history.State{Attempt: a.ID, Version: "1.0.7", Slot: slot.B, Step: history.StepWrite}); err != nil {
		t.Fatal(err)
	}
	before := clone(w.disk.parts)
	if _, err := New(w.o).Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
	all, err := w.o.History.Attempts()
	if err != nil || fmt.Sprint(all) != "[000002-1.1.0: 1.0.0 to 1.1.0, slot b: on trial 000001-1.0.7: 1.0.0 to 1.0.7, slot b: abandoned: version 1.1.0 was wanted instead]" {
		t.Errorf("%v, %v", all, err)
	}
}

// TestCutBeforeArming goes on with an attempt that said it would arm and did not come to it.
func TestCutBeforeArming(t *testing.T) {
	w := newWorld(t)
	a, err := w.o.History.Begin(history.Attempt{From: running.Info, To: next, Slot: slot.B, Armed: noon})
	check(err)
	check(w.o.History.SetState(history.State{Attempt: a.ID, Version: next.Version, Slot: slot.B, Step: history.StepArm, Sequence: 2}))
	w.get = func(context.Context, string) ([]byte, error) { return nil, errors.New("the line is down") }
	plan, err := New(w.o).Run(t.Context(), Request{})
	if err == nil || plan.Resumes != a.ID {
		t.Errorf("%v, resumes %q", err, plan.Resumes)
	}
	if a, _, err = w.o.History.Attempt(a.ID); err != nil || a.Outcome() != "under way" || a.Resumed != 1 {
		t.Errorf("%s, %v", a, err)
	}
}

func TestCancelOnTrial(t *testing.T) {
	w := newWorld(t)
	if _, err := New(w.o).Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	w.o.Running.Slot = slot.B
	if err := New(w.o).Cancel("x"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "roll back instead") {
		t.Errorf("error = %v", err)
	}
}
