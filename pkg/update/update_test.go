package update

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	plan, err := New(w.o).Run(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
	if diff := cmp.Diff([]string{"snapshot", "drain", "reboot"}, w.calls); diff != "" {
		t.Error(diff)
	}
	st, found, err := w.o.History.State()
	if err != nil || !found || st.Step != history.StepArmed || !st.WasArmed(w.disk.state) {
		t.Errorf("state %+v, %v, %v", st, found, err)
	}
	a, found, err := w.o.History.Attempt(st.Attempt)
	if err != nil || !found || a.Snapshot != "before-1.1.0" || a.Armed != noon || a.To != next {
		t.Errorf("attempt %+v, %v, %v", a, found, err)
	}
	if a.Transfer.Downloaded < plan.Download() || a.Transfer.Downloaded > plan.Download()+10_000 {
		t.Errorf("%d bytes downloaded; the plan said %d and lists of a few kB", a.Transfer.Downloaded, plan.Download())
	}
	reuse := plan.Images[0].Reuse + plan.Images[1].Reuse
	if a.Transfer.Reused != reuse || reuse < 150_000 {
		t.Errorf("%d bytes taken from the running slot; the plan said %d", a.Transfer.Reused, reuse)
	}
	for _, i := range plan.Images {
		if i.Present+i.Zero+i.Reuse+i.Fetch != w.manifest.Image(i.Name).Data || i.Fetch == 0 || i.Chunks == 0 {
			t.Errorf("the plan's parts are not the whole: %+v", i)
		}
	}
	if plan.Images[1].Zero < 16384 {
		t.Errorf("%d bytes of zeros found", plan.Images[1].Zero)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	plan, err := New(w.o).Plan(t.Context(), Request{NoReboot: true})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(before, w.disk.parts, bytes.Equal) || len(w.disk.log) > 0 {
		t.Error("the plan wrote")
	}
	if n := len(files(t, w.upgrade)); n != 0 {
		t.Errorf("%d files in the history", n)
	}
	text := plan.String()
	for _, want := range []string{"Upgrade from 1.0.0 to 1.1.0.\n", "boot   98.3 kB", "1. write 1.1.0 to slot b, ", "5. wait for the operator's reboot\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestNoReboot(t *testing.T) {
	w := newWorld(t)
	if _, err := New(w.o).Run(t.Context(), Request{NoReboot: true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"snapshot"}, w.calls); diff != "" {
		t.Error(diff)
	}
	if _, err := New(w.o).Run(t.Context(), Request{}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "slot b is armed already") {
		t.Errorf("second run: %v", err)
	}
	if err := New(w.o).Cancel("not today"); err != nil {
		t.Fatal(err)
	}
	if w.disk.state.Trial != slot.None {
		t.Errorf("still armed after Cancel: %s", w.disk.state)
	}
	all, err := w.o.History.Attempts()
	if err != nil || len(all) != 1 || all[0].Outcome() != "abandoned: not today" {
		t.Errorf("%v, %v", all, err)
	}
	// The slot is whole already: the next run writes nothing to it and downloads only lists.
	w.disk.log = nil
	plan, err := New(w.o).Run(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	if plan.Download() != 0 {
		t.Errorf("%d bytes to download", plan.Download())
	}
	for _, e := range w.disk.log {
		if len(e.data) > 0 {
			t.Errorf("%d bytes written to %s at %d of a slot that was whole", len(e.data), e.part, e.offset)
		}
	}
	if err := New(w.o).Cancel(""); err != nil {
		t.Fatal(err)
	}
	if err := New(w.o).Cancel(""); !errors.Is(err, ErrRefused) {
		t.Errorf("Cancel of nothing: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(w *world)
		request Request
		want    string
	}{
		"on trial": {func(w *world) {
			w.disk.state = slot.State{Seq: 3, Confirmed: slot.B, Trial: slot.A, Tries: 2}
		}, Request{}, "version 1.0.0 is on trial itself"},
		"armed":          {func(w *world) { w.disk.state = slot.State{Seq: 3, Confirmed: slot.A, Trial: slot.B, Tries: 3} }, Request{}, "slot b is armed already"},
		"other slot":     {func(w *world) { w.disk.state = slot.New(slot.B) }, Request{}, "slot a runs and slot b is the confirmed one"},
		"damaged state":  {func(w *world) { w.disk.state = slot.State{} }, Request{}, "state is damaged: reboot"},
		"below floor":    {func(w *world) { w.channel.Floor = "1.2.0" }, Request{}, "below 1.2.0"},
		"older channel":  {func(w *world) { w.channel.Version = "0.9.0" }, Request{}, "say --to 0.9.0 to go back"},
		"from":           {func(w *world) { w.manifest.From = "1.0.5" }, Request{}, "go to 1.0.5 first"},
		"Kubernetes":     {func(w *world) { w.manifest.Kubernetes = "v1.38.0" }, Request{}, "from v1.36.4 to v1.38.0 in one step"},
		"target":         {func(w *world) { w.manifest.Target = "arm64" }, Request{}, "for arm64 and this machine is amd64"},
		"mixed up":       {func(w *world) { w.manifest.Version = "1.1.0"; w.channel.Version = "1.1.0"; w.o.Trust = mixed{w} }, Request{}, "mixed up"},
		"boot too large": {func(w *world) { w.disk.parts["boot-b"] = make([]byte, bootImage-512) }, Request{}, "its partition 97792"},
		"root too large": {func(w *world) { w.disk.parts["root-b"] = make([]byte, 4096) }, Request{}, "install this release anew"},
		"no root image":  {func(w *world) { w.manifest.Images = w.manifest.Images[:1] }, Request{}, "has no root image"},
		"check": {func(w *world) {
			w.o.Callbacks.Check = func(context.Context, release.Manifest) ([]string, error) {
				return []string{"the store has no quorum"}, nil
			}
		}, Request{}, "the store has no quorum"},
		"quarantine": {func(w *world) {
			if err := w.o.History.AddQuarantine(history.Quarantine{Version: "1.1.0", Reason: history.Panic}); err != nil {
				t.Fatal(err)
			}
		}, Request{Version: "1.1.0"}, "in quarantine because its kernel panicked"},
		"not judged": {func(w *world) {
			st := history.State{Attempt: "000001-1.1.0", Version: "1.1.0", Slot: slot.B, Step: history.StepArmed, Sequence: 2}
			if err := w.o.History.SetState(st); err != nil {
				t.Fatal(err)
			}
			w.disk.state.Seq = 3
		}, Request{}, "was not judged yet"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w)
			before := files(t, w.upgrade)
			_, err := New(w.o).Run(t.Context(), tt.request)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v; want refusal with %q", err, tt.want)
			}
			plan, err := New(w.o).Plan(t.Context(), tt.request)
			if err != nil || len(plan.Refused) != 1 || !strings.Contains(plan.String(), tt.want) || plan.Steps() != nil {
				t.Errorf("plan: %v\n%s", err, plan)
			}
			if diff := cmp.Diff(before, files(t, w.upgrade)); diff != "" || len(w.disk.log) > 0 || w.calls != nil {
				t.Errorf("a refused upgrade left something behind: %v %v\n%s", w.disk.log, w.calls, diff)
			}
		})
	}
}

// mixed answers for every version with the wrong manifest.
type mixed struct{ *world }

func (m mixed) Manifest(context.Context, string) (release.Manifest, error) {
	wrong := m.manifest
	wrong.Version = "1.0.9"
	return wrong, nil
}

func TestCurrent(t *testing.T) {
	w := newWorld(t)
	w.channel.Version = running.Version
	if _, err := New(w.o).Run(t.Context(), Request{}); !errors.Is(err, ErrCurrent) {
		t.Errorf("error = %v; want ErrCurrent", err)
	}
	plan, err := New(w.o).Plan(t.Context(), Request{})
	if err != nil || plan.String() != "This machine runs 1.0.0 already.\n" {
		t.Errorf("%v, %s", err, plan)
	}
}

func TestBusy(t *testing.T) {
	w := newWorld(t)
	e := New(w.o)
	var got []error
	w.get = func(ctx context.Context, path string) ([]byte, error) {
		if got == nil {
			_, planErr := e.Plan(ctx, Request{})
			_, runErr := e.Run(ctx, Request{})
			got = []error{planErr, runErr, e.Cancel("")}
		}
		return w.server(ctx, path)
	}
	w.single()
	if _, err := e.Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	for i, err := range got {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("method %d: %v; want ErrBusy", i, err)
		}
	}
	if len(got) != 3 {
		t.Error("the server was never asked")
	}
}

// single makes the server answer one request at a time.
func (w *world) single() {
	get, turn := w.get, make(chan struct{}, 1)
	w.get = func(ctx context.Context, path string) ([]byte, error) {
		turn <- struct{}{}
		defer func() { <-turn }()
		return get(ctx, path)
	}
}

func TestDeltas(t *testing.T) {
	w := newWorld(t)
	path := release.IndexPath("amd64", next.Version, "root")
	x, err := chunk.DecodeIndex(w.targets[path])
	if err != nil {
		t.Fatal(err)
	}
	base := chunk.Base{Version: running.Version, SHA256: [32]byte{0xab, 0xcd}}
	list := chunk.Deltas{Base: base}
	store, at, seen := chunk.NewStore(w.dir), 0, map[chunk.ID]bool{}
	zeros := x.Zeros()
	for i, c := range x.Chunks {
		if !zeros[i] && !seen[c.ID] && i%3 > 0 {
			// Also chunks that the running slot has get one: these are not asked for.
			delta, err := chunk.EncodeDelta(w.root[at:at+c.Size], w.disk.parts["root-a"][1000:151_000])
			if err != nil {
				t.Fatal(err)
			}
			if i%5 != 0 { // the rest is missing on the server
				if err := store.PutDelta(base, c.ID, delta); err != nil {
					t.Fatal(err)
				}
			}
			list.List = append(list.List, chunk.Delta{Chunk: i, Offset: 1000, Length: 150_000, Size: len(delta)})
		}
		seen[c.ID] = true
		at += c.Size
	}
	if w.targets[chunk.DeltasPath(path, running.Version)], err = list.Encode(); err != nil {
		t.Fatal(err)
	}
	var asked []string
	w.get = func(ctx context.Context, path string) ([]byte, error) {
		asked = append(asked, path)
		data, err := w.server(ctx, path)
		if strings.HasSuffix(path, ".delta") && len(asked)%7 == 0 {
			data = data[:len(data)/2]
		}
		return data, err
	}
	w.single()
	before := clone(w.disk.parts)
	plan, err := New(w.o).Run(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
	if plan.Images[1].Deltas == 0 || plan.Images[1].Chunks == 0 {
		t.Errorf("plan of root: %+v", plan.Images[1])
	}
	deltas := slices.DeleteFunc(asked, func(p string) bool { return !strings.HasSuffix(p, ".abcd0000.delta") })
	if len(deltas) != plan.Images[1].Deltas {
		t.Errorf("%d deltas asked for; the plan said %d", len(deltas), plan.Images[1].Deltas)
	}
}

func TestPartitionsOnFiles(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	dir := t.TempDir()
	for name, data := range w.disk.parts {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.o.Slots = Partitions(func(s slot.Slot, image string) (string, error) { return filepath.Join(dir, image+"-"+string(s)), nil })
	var lines []string
	w.o.Progress = func(p Progress) { lines = append(lines, p.String()) }
	if _, err := New(w.o).Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	for name := range w.disk.parts {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		w.disk.parts[name] = data
	}
	w.wantWhole(before)
	text := strings.Join(lines, "\n")
	for _, want := range []string{"read both slots: root", "write root: 100 %, ", "compute the verity tree", "read back boot: 100 %", "armed\ndrain\nreboot"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
