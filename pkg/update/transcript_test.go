package update

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

var update = flag.Bool("update", false, "write the transcripts anew")

// transcript tells what a run did in its order, writes to one partition together, and the state that was on the disk
// whenever something happened.
func (w *world) transcript(err error) string {
	var b strings.Builder
	step, writes, total, part := "", 0, 0, ""
	flush := func() {
		if writes > 0 {
			fmt.Fprintf(&b, "%s: %d bytes in %d writes\n", part, total, writes)
		}
		writes, total = 0, 0
	}
	w.disk.log = append(w.disk.log, event{call: "end", history: files(w.t, w.upgrade)})
	for _, e := range w.disk.log {
		var st history.State
		if data, ok := e.history["state.json"]; ok {
			if err := json.Unmarshal(data, &st); err != nil {
				w.t.Fatal(err)
			}
		}
		if st.Problem != "" {
			st.Step += " (" + history.Step(st.Problem) + ")"
		}
		if now := string(st.Step); now != step {
			flush()
			fmt.Fprintf(&b, "%s\n", strings.TrimSpace("state: "+now))
			step = now
		}
		switch {
		case e.call != "":
			flush()
			fmt.Fprintf(&b, "%s\n", e.call)
		case e.part == "":
			flush()
			fmt.Fprintf(&b, "boot selector: %s\n", e.state)
		case e.data == nil:
			flush()
			fmt.Fprintf(&b, "%s: sync\n", e.part)
		case e.offset == 0 && len(e.data) == headSize && e.part == "boot-b":
			flush()
			what := "head"
			if bytes.Equal(e.data, make([]byte, headSize)) {
				what = "zeros instead of its head"
			}
			fmt.Fprintf(&b, "%s: %s\n", e.part, what)
		default:
			part, writes, total = e.part, writes+1, total+len(e.data)
		}
	}
	w.disk.log = nil
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	all, err := w.o.History.Attempts()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range all {
		fmt.Fprintf(&b, "history: %s\n", a)
	}
	list, err := w.o.History.Quarantined()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, q := range list {
		fmt.Fprintf(&b, "quarantine: %s because %s\n", q.Version, q.Reason)
	}
	return b.String()
}

// confirmed makes the trial of slot b the confirmed release that runs, as cairnd does after a good trial.
func (w *world) confirmed() {
	w.t.Helper()
	st, _, err := w.o.History.State()
	if err != nil {
		w.t.Fatal(err)
	}
	if w.disk.state, err = w.disk.state.Confirm(slot.B); err != nil {
		w.t.Fatal(err)
	}
	if err := w.o.History.Close(st.Attempt, history.End{Verdict: history.Confirmed, Time: noon}); err != nil {
		w.t.Fatal(err)
	}
	w.disk.log = nil
	w.o.Running, w.disk.runs = Running{next, "amd64", slot.B}, slot.B
}

func (w *world) run(q Request) error {
	_, err := New(w.o).Run(w.t.Context(), q)
	return err
}

func (w *world) back() error {
	_, err := New(w.o).Back(w.t.Context(), Request{})
	return err
}

// TestTranscripts holds what the engine does, in its order, to the files in testdata.
func TestTranscripts(t *testing.T) {
	ids := regexp.MustCompile("[0-9a-f]{64}") // which of several chunks is the first to fail is chance
	gone := errors.New("the line is down")
	for name, f := range map[string]func(w *world, tell func(error)){
		"upgrade": func(w *world, tell func(error)) { tell(w.run(Request{})) },
		"source_dies_and_returns": func(w *world, tell func(error)) {
			w.get = func(context.Context, string) ([]byte, error) { return nil, gone }
			tell(w.run(Request{}))
			w.get = nil
			tell(w.run(Request{}))
		},
		"drain_fails_and_works": func(w *world, tell func(error)) {
			drain := w.o.Callbacks.Drain
			w.o.Callbacks.Drain = func(ctx context.Context) error { return errors.New("a budget allows no disruption") }
			tell(w.run(Request{}))
			w.o.Callbacks.Drain = drain
			tell(w.run(Request{}))
		},
		"no_reboot_and_cancel": func(w *world, tell func(error)) {
			tell(w.run(Request{NoReboot: true}))
			tell(w.run(Request{}))
			tell(New(w.o).Cancel("not before Christmas"))
		},
		"back": func(w *world, tell func(error)) {
			if err := w.run(Request{}); err != nil {
				tell(err)
			}
			w.confirmed()
			tell(w.back())
			tell(w.back())
		},
		"back_fails": func(w *world, tell func(error)) {
			tell(w.back())
			if err := w.run(Request{}); err != nil {
				tell(err)
			}
			w.confirmed()
			w.o.Callbacks.Drain = func(ctx context.Context) error { return errors.New("a budget allows no disruption") }
			tell(w.back())
			// The power is cut as the second attempt begins, and then the third gets through.
			w.o.Callbacks.Drain = nil
			kept := files(w.t, w.upgrade)
			w.o.Callbacks.Snapshot = func(context.Context) (string, error) {
				kept = files(w.t, w.upgrade)
				return "", errors.New("no answer")
			}
			tell(w.back())
			w.restore(kept)
			w.o.Callbacks.Snapshot = nil
			tell(w.back())
		},
		"back_to_a_slot_written_since": func(w *world, tell func(error)) {
			if err := w.run(Request{}); err != nil {
				tell(err)
			}
			w.confirmed()
			w.get = func(context.Context, string) ([]byte, error) { return nil, gone }
			w.manifest.Version, w.channel.Version = "1.2.0", "1.2.0"
			tell(w.run(Request{}))
			tell(w.back())
			tell(New(w.o).Cancel("never mind"))
			tell(w.back())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.disk.history = w.upgrade
			var b strings.Builder
			f(w, func(err error) { b.WriteString(ids.ReplaceAllString(w.transcript(err), "ID") + "\n") })
			path := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
