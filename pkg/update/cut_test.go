package update

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-os/cairn/pkg/slot"
)

const sector = 512

// crash is what a machine has after its power was cut when n events had happened. What was written and not synced
// before that is there whole (rng nil), or in a random part of its sectors.
func (w *world) crash(before map[string][]byte, log []event, n int, rng *rand.Rand) (parts map[string][]byte, state slot.State) {
	parts, state = clone(before), slot.New(slot.A)
	synced := map[string]int{}
	for i, e := range log[:n] {
		if e.data == nil {
			synced[e.part] = i
		}
	}
	for i, e := range log[:n] {
		switch {
		case e.call != "":
		case e.part == "":
			state = e.state
		case rng == nil || i < synced[e.part]:
			copy(parts[e.part][e.offset:], e.data)
		default:
			for at := e.offset; at < e.offset+int64(len(e.data)); {
				end := min((at/sector+1)*sector, e.offset+int64(len(e.data)))
				if rng.IntN(2) == 0 {
					copy(parts[e.part][at:end], e.data[at-e.offset:end-e.offset])
				}
				at = end
			}
		}
	}
	return parts, state
}

// judge says what is wrong with what a cut left: the inactive slot must be the old release in it, the new one, or have
// no boot file system; and be the new one when it is armed. A boot file system is told by its first sector; the other
// sectors of the head are spare copies and hints.
func (w *world) judge(before, parts map[string][]byte, state slot.State) error {
	boot, root := parts["boot-b"], parts["root-b"]
	whole := bytes.HasPrefix(root, w.root) && bytes.Equal(boot[headSize:len(w.boot)], w.boot[headSize:])
	first := boot[:sector]
	switch {
	case !bytes.Equal(parts["boot-a"], before["boot-a"]) || !bytes.Equal(parts["root-a"], before["root-a"]):
		return fmt.Errorf("the running slot was written")
	case state.Trial != slot.None && !(whole && bytes.HasPrefix(boot, w.boot)):
		return fmt.Errorf("armed with a slot that is not whole")
	case bytes.Equal(first, make([]byte, sector)):
		return nil
	case bytes.Equal(first, w.boot[:sector]) && whole:
		return nil
	case bytes.Equal(first, before["boot-b"][:sector]) && bytes.Equal(boot[headSize:], before["boot-b"][headSize:]) && bytes.Equal(root, before["root-b"]):
		return nil
	}
	return fmt.Errorf("the inactive slot has a boot file system and is neither release")
}

// restore puts the history back to what it was at a cut.
func (w *world) restore(kept map[string][]byte) {
	w.t.Helper()
	if err := os.RemoveAll(w.upgrade); err != nil {
		w.t.Fatal(err)
	}
	for name, data := range kept {
		path := filepath.Join(w.upgrade, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// record runs an upgrade and returns all that it did to the disk.
func (w *world) record() []event {
	w.t.Helper()
	w.disk.log, w.disk.history = nil, w.upgrade
	if _, err := New(w.o).Run(w.t.Context(), Request{}); err != nil {
		w.t.Fatal(err)
	}
	log := w.disk.log
	w.disk.log, w.disk.history = nil, ""
	return append(log, event{history: files(w.t, w.upgrade)})
}

// TestPowerCut cuts the power after every write, sync and change of the boot selector, looks at what is left, and lets a
// new engine go on.
func TestPowerCut(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	log := w.record()
	states, resumed, less := 0, 0, 0
	fresh, err := freshDownload(t)
	if err != nil {
		t.Fatal(err)
	}
	for n := range log {
		for variant := range 4 {
			var rng *rand.Rand
			if variant > 0 {
				rng = rand.New(rand.NewPCG(1, uint64(n*10+variant)))
			}
			parts, state := w.crash(before, log, n, rng)
			states++
			if err := w.judge(before, parts, state); err != nil {
				t.Fatalf("cut after %d events, variant %d: %v", n, variant, err)
			}
			if variant > 0 && n%3+1 != variant { // judged; running on from a part of them is enough
				continue
			}
			w.disk.parts, w.disk.state = parts, state
			w.restore(log[n].history)
			e := w.start()
			if state.Trial != slot.None {
				w.wantWhole(before)
				continue
			}
			plan, err := e.Run(t.Context(), Request{})
			if err != nil {
				t.Fatalf("cut after %d events, variant %d: going on: %v", n, variant, err)
			}
			w.wantWhole(before)
			if resumed++; plan.Download() < fresh {
				less++
			}
			if all, err := w.o.History.Attempts(); err != nil || len(all) != 1 || (plan.Resumes != "" && all[0].Resumed != 1) {
				t.Errorf("cut after %d events: attempts %v, %v", n, all, err)
			}
		}
	}
	t.Logf("%d events, %d states judged, %d went on, %d of them had less to download", len(log), states, resumed, less)
	if less < resumed/3 {
		t.Errorf("only %d of %d runs profited from what was written before the cut", less, resumed)
	}
}

// freshDownload is what an upgrade downloads that nobody interrupts.
func freshDownload(t *testing.T) (int64, error) {
	plan, err := New(newWorld(t).o).Plan(t.Context(), Request{})
	return plan.Download(), err
}

// TestJudgeCatchesAWrongOrder runs the judge over orders of writing that the engine must not use.
func TestJudgeCatchesAWrongOrder(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	log := w.record()
	without := func(drop func(i int, e event) bool) []event {
		var kept []event
		for i, e := range log[:len(log)-1] {
			if !drop(i, e) {
				kept = append(kept, e)
			}
		}
		return kept
	}
	head := func(i int, e event) bool { return e.part == "boot-b" && e.offset == 0 && len(e.data) == headSize }
	for name, bad := range map[string][]event{
		"boot file system not taken away": without(func(i int, e event) bool { return i < 3 && head(i, e) }),
		"nothing is synced":               without(func(i int, e event) bool { return e.part != "" && e.data == nil }),
		"head of boot is not written":     without(func(i int, e event) bool { return i > 3 && head(i, e) }),
		"armed first":                     append([]event{{state: slot.State{Seq: 2, Confirmed: slot.A, Trial: slot.B, Tries: 3}}}, log...),
	} {
		caught := false
		for n := range len(bad) + 1 {
			for variant := range 4 {
				var rng *rand.Rand
				if variant > 0 {
					rng = rand.New(rand.NewPCG(2, uint64(n*10+variant)))
				}
				parts, state := w.crash(before, bad, n, rng)
				caught = caught || w.judge(before, parts, state) != nil
			}
		}
		if !caught {
			t.Errorf("%s: not caught", name)
		}
	}
}
