//go:build cgo && linux

package damage_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cairn-os/cairn/pkg/store/damage"
)

// casesVariable sets the number of damaged directories in TestAgreement.
const casesVariable = "CAIRN_TEST_DAMAGE_CASES"

// harm is one way to damage a file of a directory.
type harm struct {
	kind, file string
	at         int
	do         func(t *testing.T, path string)
}

func (h harm) String() string { return fmt.Sprintf("%s %s at %d", h.kind, h.file, h.at) }

func rewrite(change func(data []byte) []byte) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeSparse(t, path, change(data))
	}
}

func truncate(file string, n int) harm {
	return harm{"truncate", file, n, rewrite(func(d []byte) []byte { return d[:n] })}
}

func flip(file string, bit int) harm {
	return harm{"flip bit", file, bit / 8, rewrite(func(d []byte) []byte {
		d[bit/8] ^= 1 << (bit % 8)
		return d
	})}
}

// clearSector makes a sector zeros, as a disk does that drops a write.
func clearSector(file string, at int) harm {
	at = at / 512 * 512
	return harm{"clear sector", file, at, rewrite(func(d []byte) []byte {
		clear(d[at:min(at+512, len(d))])
		return d
	})}
}

func remove(file string) harm {
	return harm{"remove", file, 0, func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}}
}

// loop makes a file that cannot be opened, not even by root.
func loop(file string) harm {
	return harm{"unreadable", file, 0, func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Base(path), path); err != nil {
			t.Fatal(err)
		}
	}}
}

// used is the length of a file without zeros at its end.
func used(t *testing.T, path string) (size, used int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return len(data), len(bytes.TrimRight(data, "\x00"))
}

// harms lists n ways to damage the directory.
func harms(t *testing.T, dir string, n int, random *rand.Rand) (list []harm) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		file := e.Name()
		if file == "dqlite-lock" {
			continue
		}
		list = append(list, remove(file), loop(file))
		if _, full := used(t, filepath.Join(dir, file)); full > 0 {
			files = append(files, file)
		}
	}
	for i := 0; len(list) < n; i++ {
		file := files[i%len(files)]
		size, full := used(t, filepath.Join(dir, file))
		switch random.IntN(10) {
		case 0:
			list = append(list, truncate(file, random.IntN(min(full, 48))))
		case 1, 2:
			list = append(list, truncate(file, random.IntN(full)))
		case 3:
			list = append(list, truncate(file, full-1), truncate(file, full+random.IntN(size-full+1)))
		case 4:
			list = append(list, flip(file, random.IntN(8*min(full, 64))))
		case 5, 6:
			list = append(list, flip(file, random.IntN(8*full)))
		case 7:
			list = append(list, flip(file, 8*(full-1-random.IntN(min(full, 2048)))+random.IntN(8)))
		case 8:
			list = append(list, flip(file, random.IntN(8*size)))
		case 9:
			list = append(list, clearSector(file, random.IntN(full)))
		}
	}
	return list
}

// tally counts what happened, for the log.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *tally) add(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[what]++
}

// TestAgreement damages real directories and compares what Inspect says with
// what dqlite does:
//
//   - not damaged: dqlite starts and has every acknowledged write;
//   - dqlite does not start, or has lost acknowledged writes: damaged.
func TestAgreement(t *testing.T) {
	cases := caseCount(t, 240)
	base := scratch(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := &tally{count: map[string]int{}}
	fixtures := fixtures(t, base)
	for _, f := range fixtures {
		list := harms(t, f.dir, cases/len(fixtures), random)
		t.Run(f.name, func(t *testing.T) {
			for i, h := range list {
				t.Run(strconv.Itoa(i), func(t *testing.T) {
					t.Parallel()
					dir := filepath.Join(base, f.name+"-"+strconv.Itoa(i))
					copyDir(t, f.dir, dir)
					defer os.RemoveAll(dir)
					h.do(t, filepath.Join(dir, h.file))
					agree(t, f, h, dir, c)
				})
			}
		})
	}
	for what, n := range c.count {
		t.Logf("%4d  %s", n, what)
	}
}

// caseCount is how many directories a test damages.
func caseCount(t *testing.T, usual int) int {
	t.Helper()
	s := os.Getenv(casesVariable)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func agree(t *testing.T, f fixture, h harm, dir string, c *tally) {
	t.Helper()
	before := names(t, dir)
	r, err := damage.Inspect(dir)
	if err != nil {
		t.Errorf("%v: inspect: %v", h, err)
		return
	}
	if after := names(t, dir); !slices.Equal(before, after) {
		t.Errorf("%v: inspect changed the directory from %q to %q", h, before, after)
	}
	if r.Severity() == damage.Repairable {
		if err := damage.Repair(r); err != nil {
			t.Errorf("%v: %v", h, err)
		}
	}
	o := check(t, dir)
	lost := o.rows < f.acknowledged
	if limit, ok := undetectable(h, f); ok && o.rows >= limit && !r.Damaged() {
		c.add(fmt.Sprintf("%-8s dqlite %-8s %s %s", "LIMIT", "loses", h.kind, kindOf(h.file)))
		return
	}
	does := "starts"
	switch {
	case !o.started:
		does = "refuses"
	case lost:
		does = "LOSES"
	}
	c.add(fmt.Sprintf("%-8s dqlite %-8s %s %s", r.Severity(), does, h.kind, kindOf(h.file)))
	describe := func() string {
		return fmt.Sprintf("%v in %s, %d rows of %d acknowledged\n%s\n%s", h, f.name, o.rows, f.acknowledged, r, o.output)
	}
	switch {
	case !r.Damaged() && !o.started:
		t.Errorf("said %v, but dqlite does not start: %s", r.Severity(), describe())
	case !r.Damaged() && lost:
		t.Errorf("said %v, but dqlite has lost writes: %s", r.Severity(), describe())
	case r.Damaged() && h.kind != "remove" && !slices.ContainsFunc(r.Findings, func(f damage.Finding) bool {
		return f.Severity == damage.Damaged && kindOf(f.File) == kindOf(h.file)
	}):
		t.Errorf("the report does not name the file: %s", describe())
	}
}

// kindOf is a file's name without its numbers.
func kindOf(file string) string {
	switch {
	case strings.HasPrefix(file, "open-"):
		return "open segment"
	case strings.HasPrefix(file, "0"):
		return "closed segment"
	case strings.HasSuffix(file, ".meta"):
		return "snapshot meta"
	case strings.HasPrefix(file, "snapshot-"):
		return "snapshot"
	case strings.HasPrefix(file, "metadata"):
		return "metadata" // One can be judged by the other only.
	default:
		return file
	}
}

// undetectable says how many writes must be left after damage of which
// nothing in the directory tells:
//
//   - the open segment that is being written, up to a snapshot's worth of
//     entries, is gone as a whole, or all of its content is;
//   - a sector of the very last write reads as zeros, which is what a write
//     looks like that did not finish.
func undetectable(h harm, f fixture) (left int, ok bool) {
	switch {
	case kindOf(h.file) != "open segment":
		return 0, false
	case h.kind == "remove", h.kind == "truncate" && h.at == 0:
		return f.closed, true
	case h.kind == "clear sector":
		return f.acknowledged - 1, true
	default:
		return 0, false
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %d %v", e.Name(), info.Size(), info.Mode()))
	}
	return list
}

// scratch is a directory in memory if there is one: what is tested here is
// what dqlite reads.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "damage")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fixture is a directory that a member left, and what it had acknowledged.
type fixture struct {
	name, dir    string
	acknowledged int
	// closed is how many of the writes are at least in closed segments.
	closed int
}

// fixtures runs members.
func fixtures(t *testing.T, base string) []fixture {
	t.Helper()
	list := []fixture{{name: "young"}, {name: "killed"}, {name: "stopped"}, {name: "killed-twice"}}
	for i := range list {
		f := &list[i]
		f.dir = filepath.Join(base, f.name)
		switch f.name {
		case "young":
			f.acknowledged = write(t, "write", f.dir, 20, 1500, syscall.SIGKILL)
		case "killed":
			f.acknowledged = write(t, "write", f.dir, 150, 1500, syscall.SIGKILL)
			f.closed = f.acknowledged - int(params.Threshold)
		case "stopped":
			f.acknowledged = write(t, "write", f.dir, 110, 3000, syscall.SIGTERM)
		case "killed-twice":
			f.closed = write(t, "write", f.dir, 40, 1500, syscall.SIGKILL)
			f.acknowledged = write(t, "write", f.dir, 20, 6000, syscall.SIGKILL)
		}
		if err := damage.UpdateMark(f.dir); err != nil {
			t.Fatal(err)
		}
	}
	return list
}
