//go:build cgo && linux

package member

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSoleVoterLosesUnsyncedEntry has a standby store an entry that its
// leader, the only voter, loses in a power cut before it was acknowledged: an
// entry leaves before it is on the leader's own disk. What the leader writes
// in its place must replace it at the standby.
func TestSoleVoterLosesUnsyncedEntry(t *testing.T) {
	n := newNetwork(t)
	a, b := n.start("a"), n.start("b")
	leaderOf(t, a)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sole := func() *testNode {
		o := n.options("a")
		o.NewTerm = true
		return n.startWith(o)
	}
	do(a.Add(t.Context(), b.ID()))
	do(a.Assign(t.Context(), b.ID(), StandBy))
	exec(t, openDB(t, a), "CREATE TABLE t (x)")
	a.stop()
	dir := filepath.Join(n.root, "a")
	do(os.CopyFS(dir+"-before", os.DirFS(dir)))
	a = sole()
	leaderOf(t, a)
	exec(t, openDB(t, a), "INSERT INTO t VALUES ('lost')")
	time.Sleep(time.Second) // Nothing tells from outside what a standby has stored.
	a.stop()
	b.stop()
	if _, stored, err := ReadLast(filepath.Join(n.root, "b")); err != nil || !hasEntry(t, dir, stored) {
		t.Fatalf("the standby has entries up to %d (%v), not the last of the leader", stored, err)
	}

	do(os.Rename(dir, dir+"-after"))
	do(os.Rename(dir+"-before", dir))
	for _, name := range []string{"metadata1", "metadata2"} { // Were synced before the entry was made.
		if data, err := os.ReadFile(filepath.Join(dir+"-after", name)); err == nil {
			do(os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
	}
	a = sole()
	leaderOf(t, a)
	exec(t, openDB(t, a), "INSERT INTO t VALUES ('written')")
	b = n.start("b")
	do(a.Assign(t.Context(), b.ID(), Voter))
	leaderOf(t, a, b)
	if got := values(t, a); got != "written" {
		t.Errorf("leader has %q; want %q", got, "written")
	}
	do(a.Transfer(t.Context(), b.ID()))
	leaderOf(t, b, b)
	if got := values(t, b); got != "written" {
		t.Errorf("the former standby has %q; want %q", got, "written")
	}
}

// hasEntry says that the log in dir ends at that index.
func hasEntry(t *testing.T, dir string, index uint64) bool {
	t.Helper()
	_, last, err := ReadLast(dir)
	if err != nil {
		t.Fatal(err)
	}
	return last == index
}
