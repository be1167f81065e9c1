//go:build cgo

package store_test

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// database starts a member without a Backend until the test ends.
func database(t *testing.T) driver.Connector {
	t.Helper()
	m, err := member.Start(member.Options{Dir: t.TempDir(), Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	return connector
}

func quiet(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func open(t *testing.T, connector driver.Connector) *store.Backend {
	t.Helper()
	b, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// fillStore writes keys of every kind: updated, deleted, created again, with a
// lease, with names that are no text, with values of several pages.
func fillStore(t *testing.T, b *store.Backend, n int) {
	t.Helper()
	ctx := t.Context()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		key := fmt.Sprintf("/t/%d/%04d", i%5, i)
		if i%11 == 0 {
			key += "\x00\xff"
		}
		value := make([]byte, random.IntN(3000))
		for j := range value {
			value[j] = byte(random.IntN(30))
		}
		if i%97 == 0 {
			value = make([]byte, 300_000)
		}
		rev, err := b.Create(ctx, key, value, int64(i%3)*3600)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 7 {
		case 1, 2:
			if _, _, ok, err := b.Update(ctx, key, append(value, 'u'), rev, 0); !ok || err != nil {
				t.Fatal(ok, err)
			}
		case 3:
			if _, _, ok, err := b.Delete(ctx, key, rev); !ok || err != nil {
				t.Fatal(ok, err)
			}
		case 4:
			if _, _, ok, err := b.Delete(ctx, key, rev); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if _, err := b.Create(ctx, key, value, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// listed is what a list at a revision answers, in the order of revisions.
func listed(t *testing.T, b *store.Backend, revision int64) []*server.KeyValue {
	t.Helper()
	_, kvs, err := b.List(t.Context(), "", "", 0, revision, false)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(kvs, func(a, b *server.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	return kvs
}

func describe(kvs []*server.KeyValue) []string {
	var all []string
	for _, kv := range kvs {
		all = append(all, fmt.Sprintf("%q created %d changed %d version %d lease %d value %d %.50q",
			kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, len(kv.Value), kv.Value))
	}
	return all
}

func sequence(kvs []*server.KeyValue, end error) iter.Seq2[*server.KeyValue, error] {
	return func(yield func(*server.KeyValue, error) bool) {
		for _, kv := range kvs {
			if !yield(kv, nil) {
				return
			}
		}
		if end != nil {
			yield(nil, end)
		}
	}
}

// TestScan scans while keys are changed, deleted and created: it shows one
// revision, as a list does.
func TestScan(t *testing.T) {
	b := open(t, database(t))
	fillStore(t, b, 800)
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if _, err := b.Put(context.WithoutCancel(ctx), fmt.Sprintf("/t/%d/%04d", n%7, n%900), []byte("new"), 0); err != nil {
				t.Error(err)
			}
			if _, _, _, err := b.Delete(context.WithoutCancel(ctx), fmt.Sprintf("/t/%d/%04d", n%5, (n*7)%800), 0); err != nil {
				t.Error(err)
			}
		}
		written <- n
	}()
	for range 20 {
		var got []*server.KeyValue
		rev, err := b.Scan(t.Context(), func(kv *server.KeyValue) error { got = append(got, kv); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(describe(listed(t, b, rev)), describe(got)); diff != "" {
			t.Fatalf("at revision %d: %s", rev, diff)
		}
	}
	stop()
	if n := <-written; n < 10 {
		t.Errorf("%d writes beside twenty scans; want more", n)
	}
}

func TestScanCompacted(t *testing.T) {
	b := open(t, database(t))
	fillStore(t, b, 400)
	n := 0
	rev, err := b.Scan(t.Context(), func(*server.KeyValue) error {
		if n++; n > 1 {
			return nil
		}
		rev, err := b.Put(t.Context(), "/t/new", nil, 0)
		if err == nil {
			_, err = b.Compact(t.Context(), rev)
		}
		return err
	})
	if !errors.Is(err, server.ErrCompacted) {
		t.Errorf("Scan of a revision that was compacted meanwhile = %d, %v; want ErrCompacted", rev, err)
	}
	boom := errors.New("boom")
	if _, err := b.Scan(t.Context(), func(*server.KeyValue) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Scan: %v; want the callback's error", err)
	}
}

// TestLoad carries a store over into an empty one.
func TestLoad(t *testing.T) {
	ctx := t.Context()
	from := open(t, database(t))
	fillStore(t, from, 700)
	if _, _, ok, err := from.Delete(ctx, "/registry/health", 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	var rows []*server.KeyValue
	rev, err := from.Scan(ctx, func(kv *server.KeyValue) error { rows = append(rows, kv); return nil })
	if err != nil {
		t.Fatal(err)
	}
	connector := database(t)
	done, err := store.Load(ctx, connector, sequence(rows, nil), rev, 1000)
	if want := (store.Loaded{Keys: int64(len(rows)), Revision: rev + 1000}); err != nil || done != want {
		t.Fatalf("Load = %+v, %v; want %+v", done, err, want)
	}
	to := open(t, connector)
	if got, err := to.CurrentRevision(ctx); got != done.Revision || err != nil {
		t.Errorf("current revision %d, %v; want %d", got, err, done.Revision)
	}
	if diff := gocmp.Diff(describe(listed(t, from, rev)), describe(listed(t, to, 0))); diff != "" {
		t.Error(diff)
	}
	for _, old := range []int64{1, rev, done.Revision - 1} {
		if _, _, err := to.Get(ctx, rows[0].Key, old, false); !errors.Is(err, server.ErrCompacted) {
			t.Errorf("Get at revision %d: %v; want ErrCompacted", old, err)
		}
		if w := to.Watch(ctx, "", "", old); w.CompactRevision != done.Revision {
			t.Errorf("Watch from revision %d: compact revision %d; want %d", old, w.CompactRevision, done.Revision)
		}
	}
	if _, kv, ok, err := to.Update(ctx, rows[5].Key, []byte("x"), rows[5].ModRevision, 0); !ok || err != nil || kv.ModRevision != done.Revision+1 {
		t.Errorf("Update = %+v, %v, %v; want revision %d", kv, ok, err, done.Revision+1)
	}
	_, kv, err := to.Get(ctx, rows[5].Key, 0, false)
	if err != nil || kv.CreateRevision != rows[5].CreateRevision || kv.Version != rows[5].Version+1 {
		t.Errorf("after an update: %+v, %v; want created %d, version %d", kv, err, rows[5].CreateRevision, rows[5].Version+1)
	}
	// What is behind the mark can be compacted like any other history.
	if _, err := to.Compact(ctx, done.Revision+1); err != nil {
		t.Error(err)
	}
	if _, n, err := to.Count(ctx, "", "", 0); n != int64(len(rows)) || err != nil {
		t.Errorf("count %d, %v; want %d", n, err, len(rows))
	}
}

// TestLoadLease lets the lease of a loaded key run out.
func TestLoadLease(t *testing.T) {
	connector := database(t)
	rows := sequence([]*server.KeyValue{{Key: "/t/a", CreateRevision: 7, ModRevision: 7, Version: 1, Lease: 1, Value: []byte("v")}}, nil)
	done, err := store.Load(t.Context(), connector, rows, 9, 0)
	if err != nil || done.Revision != 10 {
		t.Fatalf("Load = %+v, %v; want revision 10", done, err)
	}
	b := open(t, connector)
	w := b.Watch(t.Context(), "/t/", "/t0", done.Revision+1)
	select {
	case events := <-w.Events:
		if !events[0].Delete || events[0].PrevKV.ModRevision != 7 {
			t.Errorf("event %+v; want the deletion of revision 7", events[0])
		}
	case <-time.After(10 * time.Second):
		t.Error("a loaded key with a lease of 1s is there after 10s")
	}
}

// TestLoadShared gives keys of one etcd transaction revisions of their own.
func TestLoadShared(t *testing.T) {
	connector := database(t)
	row := func(key string, created, changed, version int64) *server.KeyValue {
		return &server.KeyValue{Key: key, CreateRevision: created, ModRevision: changed, Version: version}
	}
	done, err := store.Load(t.Context(), connector,
		sequence([]*server.KeyValue{row("b", 5, 5, 1), row("a", 5, 5, 1), row("c", 2, 5, 4), row("d", 8, 8, 1)}, nil), 8, 0)
	if want := (store.Loaded{Keys: 4, Moved: 2, Revision: 11}); err != nil || done != want {
		t.Fatalf("Load = %+v, %v; want %+v", done, err, want)
	}
	want := []*server.KeyValue{row("b", 5, 5, 1), row("d", 8, 8, 1), row("a", 5, 9, 1), row("c", 2, 10, 4)}
	if diff := gocmp.Diff(describe(want), describe(listed(t, open(t, connector), 0))); diff != "" {
		t.Error(diff)
	}
}

// TestLoadCut leaves a database that is not taken for a complete one.
func TestLoadCut(t *testing.T) {
	connector := database(t)
	var rows []*server.KeyValue
	for i := range int64(1200) {
		rows = append(rows, &server.KeyValue{Key: fmt.Sprint("/t/", i), CreateRevision: i + 1, ModRevision: i + 1, Version: 1})
	}
	boom := errors.New("boom")
	if done, err := store.Load(t.Context(), connector, sequence(rows, boom), 1200, 0); !errors.Is(err, boom) {
		t.Fatalf("Load = %+v, %v; want the rows' error", done, err)
	}
	if _, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: quiet(t)}); err == nil || !strings.Contains(err.Error(), "format") {
		t.Errorf("Open after a load that was cut: %v; want an error about the format", err)
	}
	if done, err := store.Load(t.Context(), connector, sequence(rows, nil), 1200, 0); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("Load into a database that is not empty = %+v, %v; want an error that says so", done, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	good := server.KeyValue{Key: "/t/a", CreateRevision: 3, ModRevision: 5, Version: 2}
	with := func(f func(kv *server.KeyValue)) []*server.KeyValue {
		kv := good
		f(&kv)
		return []*server.KeyValue{&kv}
	}
	for _, c := range []struct {
		name           string
		rows           []*server.KeyValue
		revision, bump int64
		want           string
	}{
		{"no key", with(func(kv *server.KeyValue) { kv.Key = "" }), 9, 0, "no such row"},
		{"no version", with(func(kv *server.KeyValue) { kv.Version = 0 }), 9, 0, `key "/t/a"`},
		{"created later", with(func(kv *server.KeyValue) { kv.CreateRevision = 6 }), 9, 0, "created at revision 6"},
		{"of the future", with(func(kv *server.KeyValue) { kv.ModRevision = 10 }), 9, 0, "changed at 10 of 9"},
		{"negative lease", with(func(kv *server.KeyValue) { kv.Lease = -1 }), 9, 0, "lease -1"},
		{"not in order", []*server.KeyValue{{Key: "b", CreateRevision: 6, ModRevision: 6, Version: 1}, &good}, 9, 0, "revision 5 after 6"},
		{"twice", []*server.KeyValue{&good, &good}, 9, 0, "a key came twice"},
		{"negative bump", nil, 9, -1, "revision 9 plus -1"},
		{"too far", nil, 9, 1 << 61, "want at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if done, err := store.Load(t.Context(), database(t), sequence(c.rows, nil), c.revision, c.bump); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Load = %+v, %v; want an error with %q", done, err, c.want)
			}
		})
	}
}
