package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"
)

// CurrentRevision and DbSize make list a KeeperSource.
func (l *list) CurrentRevision(context.Context) (int64, error) { return l.revision, nil }
func (l *list) DbSize(context.Context) (int64, error)          { return 1 << 20, nil }

func TestFileName(t *testing.T) {
	if got, want := fileName(4711, sampleTime), "snapshot-20261121T123000Z-4711.db"; got != want {
		t.Errorf("fileName = %s; want %s", got, want)
	}
	revision, at, ok := parseName("snapshot-20261121T123000Z-4711.db")
	if revision != 4711 || !at.Equal(sampleTime) || !ok {
		t.Errorf("parseName = %d, %v, %v", revision, at, ok)
	}
	for _, name := range []string{
		"", "snapshot-.db", "snapshot-20261121T123000Z.db", "snapshot-20261121T123000Z-.db", "snapshot-20261121T123000Z-x.db",
		"snapshot-20261121T123000Z--1.db", "snapshot-20261121T123000Z-007.db", "snapshot-20261399T123000Z-1.db",
		"snapshot-20261121T123000Z-4711.db.part", ".tmp-snapshot-1", "snapshot-20261121T123000Z-99999999999999999999.db",
	} {
		if revision, at, ok := parseName(name); ok {
			t.Errorf("parseName(%q) = %d, %v; want none", name, revision, at)
		}
	}
}

// TestSurplus: days are those of the names, in the order of revisions.
func TestSurplus(t *testing.T) {
	file := func(revision int64, day string) File {
		at, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		return File{Revision: revision, Time: at}
	}
	files := []File{
		file(90, "2026-11-21"), file(80, "1970-01-01"), file(70, "2026-11-21"), file(60, "2026-11-20"),
		file(50, "2026-11-20"), file(40, "2026-11-19"), file(30, "2026-11-18"),
	}
	for _, c := range []struct {
		keep, days int
		want       []int64
	}{
		{1, 0, []int64{80, 70, 60, 50, 40, 30}},
		{3, 0, []int64{60, 50, 40, 30}},
		{9, 0, nil},
		{1, 1, []int64{80, 70, 60, 50, 40, 30}},
		{1, 3, []int64{70, 50, 40, 30}},
		{2, 4, []int64{70, 50, 30}},
		{2, 9, []int64{70, 50}},
	} {
		var got []int64
		for _, f := range surplus(files, c.keep, c.days) {
			got = append(got, f.Revision)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("surplus(%d, %d): %s", c.keep, c.days, diff)
		}
	}
}

// clock is a clock that tests set.
type clock struct{ unix atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(c.unix.Load(), 0) }
func (c *clock) advance(d time.Duration) { c.unix.Add(int64(d / time.Second)) }

func newKeeper(t *testing.T, o KeeperOptions) *Keeper {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	k, err := NewKeeper(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func revisions(t *testing.T, dir string) []int64 {
	t.Helper()
	files, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []int64
	for _, f := range files {
		all = append(all, f.Revision)
	}
	return all
}

func TestKeeper(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".tmp-snapshot-123", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c clock
	c.unix.Store(sampleTime.Unix())
	k := newKeeper(t, KeeperOptions{Dir: dir, Keep: 3, MinFree: 1, Now: c.now})
	source := sample(20)
	for i := range 6 {
		source.revision++
		c.advance(6 * time.Hour)
		if i == 3 {
			c.unix.Store(0) // The clock jumps.
		}
		info, err := k.Take(t.Context(), source)
		if err != nil || info.Revision != source.revision || !info.Time.Equal(c.now()) {
			t.Fatalf("Take = %+v, %v; want revision %d", info, err, source.revision)
		}
	}
	want := []int64{source.revision, source.revision - 1, source.revision - 2}
	if diff := cmp.Diff(want, revisions(t, dir)); diff != "" {
		t.Error(diff)
	}
	if got := names(t, dir); len(got) != 4 {
		t.Errorf("directory: %v; want three snapshots and the stranger's file", got)
	}
	// The newest is damaged: the one before counts.
	newest, damaged := Newest(dir)
	if newest == nil || newest.Revision != source.revision || damaged != nil {
		t.Fatalf("Newest = %+v, %v", newest, damaged)
	}
	if err := os.Truncate(newest.Path, newest.Size/2); err != nil {
		t.Fatal(err)
	}
	newest, damaged = Newest(dir)
	if newest == nil || newest.Revision != source.revision-1 || len(damaged) != 1 {
		t.Errorf("Newest = %+v, %v; want revision %d and one damaged", newest, damaged, source.revision-1)
	}
	// A renamed file does not pass for what its name says.
	if err := os.Rename(newest.Path, filepath.Join(dir, fileName(source.revision+9, sampleTime))); err != nil {
		t.Fatal(err)
	}
	if newest, damaged = Newest(dir); newest == nil || newest.Revision != source.revision-2 || len(damaged) != 2 {
		t.Errorf("Newest = %+v, %v; want revision %d and two that are not", newest, damaged, source.revision-2)
	}
	if newest, damaged := Newest(filepath.Join(dir, "absent")); newest != nil || damaged != nil {
		t.Errorf("Newest of a missing directory = %v, %v; want none", newest, damaged)
	}
}

// TestKeeperKeepsWhatItTook: snapshots of another history with greater
// revisions do not push out the one that was just taken.
func TestKeeperKeepsWhatItTook(t *testing.T) {
	dir := t.TempDir()
	k := newKeeper(t, KeeperOptions{Dir: dir, Keep: 1, MinFree: 1})
	source := sample(3)
	source.revision = 1_000_000
	if _, err := k.Take(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	source.revision = 1000
	if _, err := k.Take(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{1_000_000, 1000}, revisions(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestKeeperSpace(t *testing.T) {
	dir := t.TempDir()
	k := newKeeper(t, KeeperOptions{Dir: dir, Keep: 9, MinFree: 1})
	source := sample(3)
	for range 3 {
		source.revision++
		if _, err := k.Take(t.Context(), source); err != nil {
			t.Fatal(err)
		}
	}
	all := []int64{source.revision, source.revision - 1, source.revision - 2}
	free, err := k.free()
	if err != nil {
		t.Fatal(err)
	}
	k.o.MinFree = free + 1<<40
	if info, err := k.Take(t.Context(), source); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Take on a full disk = %+v, %v; want ErrNoSpace", info, err)
	}
	if diff := cmp.Diff(all, revisions(t, dir)); diff != "" {
		t.Errorf("nothing goes when that does not make enough: %s", diff)
	}
	if s := k.Status(); s.Error == "" || s.Last == nil || s.Last.Revision != source.revision {
		t.Errorf("status %+v; want an error and the last snapshot", s)
	}
	// A sparse file passes for one that takes a lot.
	files, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[1].Path, 2<<40); err != nil {
		t.Fatal(err)
	}
	if err := k.makeSpace(1 << 20); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(all[:1], revisions(t, dir)); diff != "" {
		t.Errorf("the newest stays, older ones go: %s", diff)
	}
}

// TestKeeperRun takes one at the start, none while nothing changes, and goes
// on after an error.
func TestKeeperRun(t *testing.T) {
	dir := t.TempDir()
	var c clock
	c.unix.Store(sampleTime.Unix())
	k := newKeeper(t, KeeperOptions{Dir: dir, Interval: 20 * time.Millisecond, MinFree: 1, Now: c.now})
	source := &counted{list: sample(5)}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { k.Run(ctx, source); close(ended) }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 20s: %s; status %+v", what, k.Status())
			}
		}
	}
	wait("the first snapshot", func() bool { return len(revisions(t, dir)) == 1 })
	asked := source.asked.Load()
	wait("ten intervals", func() bool { return source.asked.Load() > asked+10 })
	if got := source.scans.Load(); got != 1 {
		t.Errorf("%d snapshots of a store that does not change; want 1", got)
	}
	source.broken.Store(true)
	wait("an error", func() bool { return k.Status().Error != "" })
	source.broken.Store(false)
	source.more.Add(1)
	wait("the second snapshot", func() bool { return len(revisions(t, dir)) == 2 })
	stop()
	<-ended
}

type counted struct {
	*list
	asked, scans, more atomic.Int64
	broken             atomic.Bool
}

func (c *counted) CurrentRevision(context.Context) (int64, error) {
	c.asked.Add(1)
	if c.broken.Load() {
		return 0, errors.New("broken")
	}
	return c.revision + c.more.Load(), nil
}

func (c *counted) Scan(ctx context.Context, fn func(*server.KeyValue) error) (int64, error) {
	c.scans.Add(1)
	rev, err := c.list.Scan(ctx, fn)
	return rev + c.more.Load(), err
}

func TestUntilDue(t *testing.T) {
	var c clock
	for _, test := range []struct {
		age  time.Duration
		want time.Duration
	}{{time.Hour, 5 * time.Hour}, {6 * time.Hour, 0}, {48 * time.Hour, 0}, {-time.Hour, 0}, {0, 6 * time.Hour}} {
		t.Run(fmt.Sprint(test.age), func(t *testing.T) {
			dir := t.TempDir()
			c.unix.Store(sampleTime.Add(test.age).Unix())
			k := newKeeper(t, KeeperOptions{Dir: dir, Now: c.now})
			if got := k.untilDue(); got != 0 {
				t.Errorf("due in %v without any; want at once", got)
			}
			if err := os.WriteFile(filepath.Join(dir, fileName(1, sampleTime)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := k.untilDue(); got != test.want {
				t.Errorf("due in %v; want %v", got, test.want)
			}
		})
	}
}
