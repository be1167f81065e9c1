//go:build cgo && linux

package powerloss_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

// The long run and the replay of what it found:
//
//	CAIRN_POWERCUTS=1000                how many cut points, default 30, four states each
//	CAIRN_POWERCUT_SEED=7               of workload, cuts and losses; printed
//	CAIRN_POWERCUT_KEEP=/some/dir       keep states that failed, and their recording
//	CAIRN_POWERCUT_RECORDING=/some/file replay a kept recording
//	CAIRN_POWERCUT_STATE="cut=..."      and of it only this state, as printed
const (
	cutsVariable      = "CAIRN_POWERCUTS"
	seedVariable      = "CAIRN_POWERCUT_SEED"
	keepVariable      = "CAIRN_POWERCUT_KEEP"
	recordingVariable = "CAIRN_POWERCUT_RECORDING"
	stateVariable     = "CAIRN_POWERCUT_STATE"
)

const (
	defaultCuts = 30
	// verifiers is how many states are opened at once.
	verifiers = 2
	// maxFailures ends a run that has shown enough.
	maxFailures = 20
)

// memberDir is the member's directory in a store's.
const memberDir = "member"

func seed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv(seedVariable); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
		return n
	}
	return rand.Uint64N(1 << 32)
}

func cuts(t *testing.T) int {
	t.Helper()
	if text := os.Getenv(cutsVariable); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: want a number of cut points", cutsVariable, text)
		}
		return n
	}
	return defaultCuts
}

// scratch returns a directory in memory if there is room: states are some ten
// megabytes each.
func scratch(t *testing.T) string {
	t.Helper()
	const shm, room = "/dev/shm", 1 << 30
	var st syscall.Statfs_t
	if err := syscall.Statfs(shm, &st); err != nil || int64(st.Bavail)*int64(st.Bsize) < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "cairn-powerloss-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mount records a new directory and returns where it is mounted.
func mount(t *testing.T) (*powerloss.Recorder, string) {
	t.Helper()
	if err := powerloss.Available(); err != nil {
		t.Skip(err)
	}
	backing, at := scratch(t), t.TempDir()
	r, err := powerloss.Start(backing, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) }) // Stop has done it, or the test ended before.
	return r, at
}

// step is a part of a store's life: so many operations acknowledged, then a
// signal while clients write on.
type step struct {
	operations int64
	end        syscall.Signal
}

// recordStore records the life of a store from its first start on.
func recordStore(t *testing.T, seed uint64, life []step) *powerloss.Recording {
	t.Helper()
	r, at := mount(t)
	socket := filepath.Join(t.TempDir(), "sock")
	w := newWorkload(t, r, socket, seed)
	began := time.Now()
	for _, s := range life {
		w.run(startStore(t, filepath.Join(at, memberDir), socket), s.operations, s.end)
	}
	recording, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("recorded %d operations acknowledged in %s: %s", w.acknowledged.Load(), time.Since(began).Round(time.Millisecond), describe(recording))
	return recording
}

func describe(r *powerloss.Recording) string {
	kinds := map[powerloss.Kind]int{}
	snapshots, segments := 0, 0
	for _, e := range r.Events {
		kinds[e.Kind]++
		if e.Kind == powerloss.Rename && strings.HasPrefix(e.ToName, "snapshot-") && strings.HasSuffix(e.ToName, ".meta") {
			snapshots++
		}
		if e.Kind == powerloss.Rename && strings.HasPrefix(e.Name, "open-") {
			segments++
		}
	}
	return fmt.Sprintf("positions %d to %d, events %v, %d snapshots, %d segments closed, %+v", r.Start, r.End, kinds, snapshots, segments, r.Statistics)
}

// outcome is what opening states showed.
type outcome struct {
	states   int
	failures []string
	failed   []powerloss.State
	slowest  time.Duration
}

// openStates opens each state and compares, until there are enough failures.
func openStates(t *testing.T, states []powerloss.State, expect func(cut int) expectation, enough int) outcome {
	t.Helper()
	dir := scratch(t)
	var mu sync.Mutex
	var o outcome
	next := make(chan powerloss.State)
	var group sync.WaitGroup
	for i := range verifiers {
		group.Go(func() {
			v := &verifier{}
			for s := range next {
				at := filepath.Join(dir, strconv.Itoa(i))
				began := time.Now()
				problems := openState(t, v, s, expect(s.Cut), at)
				mu.Lock()
				if o.states++; o.states%500 == 0 {
					t.Logf("%d states of %d opened, %d failures", o.states, len(states), len(o.failures))
				}
				o.slowest = max(o.slowest, time.Since(began))
				if len(problems) > 0 {
					o.failures = append(o.failures, fmt.Sprintf("%s: %s", s, strings.Join(problems, "\n  ")))
					o.failed = append(o.failed, s)
				}
				mu.Unlock()
				if err := os.RemoveAll(at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, s := range states {
		mu.Lock()
		done := len(o.failures) >= enough
		mu.Unlock()
		if done {
			break
		}
		next <- s
	}
	close(next)
	group.Wait()
	return o
}

func openState(t *testing.T, v *verifier, s powerloss.State, e expectation, at string) []string {
	if err := s.Write(at); err != nil {
		return []string{err.Error()}
	}
	before := listing(at)
	problems := e.problems(v.ask(t, question{filepath.Join(at, memberDir), e.compacted}))
	if len(problems) > 0 {
		problems = append(problems, fmt.Sprintf("replay: %s='%s'", stateVariable, s), "the state: "+before, "afterwards: "+listing(at))
	}
	return problems
}

// listing returns the files below a directory with their sizes.
func listing(dir string) string {
	var files []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			files = append(files, fmt.Sprintf("%s (%d)", strings.TrimPrefix(path, dir+"/"), info.Size()))
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	return strings.Join(files, ", ")
}

// keep keeps what can be replayed.
func keep(t *testing.T, r *powerloss.Recording, failed []powerloss.State) {
	t.Helper()
	dir := os.Getenv(keepVariable)
	if dir == "" || len(failed) == 0 {
		return
	}
	dir = filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "recording"))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(r.Save(f), f.Close())
	for _, s := range failed {
		err = errors.Join(err, s.Write(filepath.Join(dir, strings.ReplaceAll(s.String(), " ", ","))))
	}
	if err != nil {
		t.Error(err)
	}
	t.Logf("kept, for -run TestStore: %s=%s", recordingVariable, f.Name())
}

// recordingFor loads the recording to replay, or makes one.
func recordingFor(t *testing.T, operations int64) (*powerloss.Recording, uint64) {
	t.Helper()
	seed := seed(t)
	t.Logf("%s=%d", seedVariable, seed)
	if name := os.Getenv(recordingVariable); name != "" {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := powerloss.Load(f)
		if err != nil {
			t.Fatal(err)
		}
		return r, seed
	}
	r := recordStore(t, seed, []step{
		{operations / 4, syscall.SIGTERM}, {operations / 4, syscall.SIGKILL}, {10, syscall.SIGKILL}, {operations / 2, syscall.SIGTERM},
	})
	return r, seed
}

// TestStore cuts the power at sampled points of a store's life. Whatever was
// acknowledged is there, and nobody's hand is needed. The same recording on
// disks that lie about flushes shows that the test would notice.
func TestStore(t *testing.T) {
	n := cuts(t)
	r, seed := recordingFor(t, int64(min(1_500+6*n, 9_000)))
	t.Run("survives", func(t *testing.T) { survive(t, r, seed, n) })
	if os.Getenv(stateVariable) != "" {
		return
	}
	directories := map[uint64]bool{1: true}
	for _, e := range r.Events {
		if e.Kind == powerloss.Mkdir {
			directories[e.File] = true
		}
	}
	for _, lie := range []struct {
		ignored string
		match   func(*powerloss.Event) bool
	}{
		{"all flushes", func(*powerloss.Event) bool { return true }},
		{"flushes of files", func(e *powerloss.Event) bool { return !directories[e.File] }},
		{"flushes of directories", func(e *powerloss.Event) bool { return directories[e.File] }},
	} {
		t.Run("a disk that ignores "+lie.ignored, func(t *testing.T) { notSurvive(t, r.Without(lie.match), seed) })
	}
}

// notSurvive wants failures.
func notSurvive(t *testing.T, r *powerloss.Recording, seed uint64) {
	t.Helper()
	var states []powerloss.State
	for _, cut := range r.Cuts(20, seed) {
		states = append(states, r.States(cut, seed, powerloss.Torn, powerloss.DetachedTorn, powerloss.DetachedLeast)...)
	}
	o := openStates(t, states, noted(t, r), 1)
	if len(o.failures) == 0 {
		t.Fatalf("%d states of a disk that lies and no loss: the test does not see losses", o.states)
	}
	t.Logf("found with %d states: %.300s", o.states, o.failures[0])
}

// TestFirstStart cuts the power while a new directory becomes a store.
func TestFirstStart(t *testing.T) {
	if os.Getenv(recordingVariable) != "" {
		t.Skip("replaying " + recordingVariable)
	}
	seed := seed(t)
	t.Logf("%s=%d", seedVariable, seed)
	r := recordStore(t, seed, []step{{clients, syscall.SIGKILL}})
	survive(t, r, seed, cuts(t)/4+1)
}

// TestSecondCut cuts the power again while a store starts on what a first cut
// left and writes again.
func TestSecondCut(t *testing.T) {
	if os.Getenv(recordingVariable) != "" {
		t.Skip("replaying " + recordingVariable)
	}
	seed := seed(t)
	t.Logf("%s=%d", seedVariable, seed)
	first := recordStore(t, seed, []step{{900, syscall.SIGKILL}})
	n, states := cuts(t)/10, 0
	for i, cut := range first.Cuts(n, seed) {
		s := first.States(cut, seed, powerloss.Variants[i%len(powerloss.Variants)])[0]
		r, e := recordRestart(t, first, s)
		var second []powerloss.State
		for j, cut := range r.Cuts(4, seed) {
			second = append(second, r.States(cut, seed, powerloss.Variants[j%2], powerloss.Variants[2+j%2])...)
		}
		o := openStates(t, second, e, maxFailures)
		for _, f := range o.failures {
			t.Errorf("after %s: %s", s, f)
		}
		keep(t, r, o.failed)
		states += o.states
	}
	t.Logf("%d states of %d restarts after a cut opened", states, n)
}

// recordRestart records a store that starts on a state, and returns what must
// be there from then on.
func recordRestart(t *testing.T, first *powerloss.Recording, s powerloss.State) (*powerloss.Recording, func(int) expectation) {
	t.Helper()
	backing, at := scratch(t), t.TempDir()
	if err := s.Write(backing); err != nil {
		t.Fatal(err)
	}
	before := listing(backing)
	e := expect(t, first, s.Cut)
	r, err := powerloss.Record(backing, at, func(dir string) error {
		v := &verifier{}
		if problems := e.problems(v.ask(t, question{filepath.Join(dir, memberDir), e.compacted})); len(problems) > 0 {
			t.Errorf("%s: %s\n  the state: %s", s, strings.Join(problems, "\n  "), before)
		}
		v.end()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, func(int) expectation { return e }
}

// survive opens states of n cuts.
func survive(t *testing.T, r *powerloss.Recording, seed uint64, n int) {
	t.Helper()
	var states []powerloss.State
	if text := os.Getenv(stateVariable); text != "" {
		s, err := r.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, s)
	} else {
		for i, cut := range r.Cuts(n, seed) {
			// Four of the variants each, by turns.
			for j := range 4 {
				states = append(states, r.States(cut, seed+uint64(j), powerloss.Variants[(i+j)%len(powerloss.Variants)])...)
			}
		}
	}
	began := time.Now()
	o := openStates(t, states, noted(t, r), maxFailures)
	for _, f := range o.failures {
		t.Error(f)
	}
	keep(t, r, o.failed)
	took := time.Since(began)
	t.Logf("%d states of %d cuts opened in %s (%s each with %d at a time, at most %s): %d failures",
		o.states, len(states)/4, took.Round(time.Millisecond), (took / time.Duration(max(o.states, 1))).Round(time.Millisecond), verifiers, o.slowest.Round(time.Millisecond), len(o.failures))
}
