//go:build cgo

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

func quiet(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// running is a store of ours on one member.
type running struct {
	*store.Backend
	member *member.Member
	stop   func()
}

// start runs the store in dir until stop or the test's end.
func start(t testing.TB, dir string) *running {
	t.Helper()
	m, err := member.Start(member.Options{Dir: dir, Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b, err := store.Open(ctx, store.Options{Connector: connector, Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Backend: b, member: m}
	stopped := false
	r.stop = func() {
		if !stopped {
			stopped = true
			if err := errors.Join(b.Close(), m.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// use writes n keys and changes, deletes and creates some again.
func (r *running) use(t testing.TB, prefix string, n int) {
	t.Helper()
	ctx := t.Context()
	for i := range n {
		key := fmt.Sprintf("%s/%04d", prefix, i)
		if i%13 == 0 {
			key += "\x00\xff"
		}
		rev, err := r.Create(ctx, key, []byte(strings.Repeat(key, i%300)), int64(i%4)*1800)
		if err == nil && i%3 == 1 {
			_, _, _, err = r.Update(ctx, key, []byte("updated"), rev, 0)
		}
		if err == nil && i%5 == 2 {
			_, _, _, err = r.Delete(ctx, key, 0)
		}
		if err == nil && i%10 == 2 {
			_, err = r.Create(ctx, key, nil, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// The last revision is that of no key.
	if _, _, _, err := r.Delete(ctx, prefix+"/0001", 0); err != nil {
		t.Fatal(err)
	}
}

// content describes all keys and returns the revision.
func (r *running) content(t testing.TB) ([]string, int64) {
	t.Helper()
	var all []*server.KeyValue
	rev, err := r.Scan(t.Context(), func(kv *server.KeyValue) error { all = append(all, kv); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return describe(all), rev
}

// TestRestore carries a store over by a snapshot, first into nothing, then
// over a member that is there.
func TestRestore(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	from := start(t, filepath.Join(dir, "from"))
	from.use(t, "/registry/a", 500)
	path := filepath.Join(dir, "s.db")
	info, err := Write(ctx, path, from)
	if err != nil {
		t.Fatal(err)
	}
	want, rev := from.content(t)
	if info.Revision != rev || info.Keys != int64(len(want)) {
		t.Errorf("snapshot %+v; want %d keys at %d", info, len(want), rev)
	}

	memberDir := filepath.Join(dir, "member")
	first, err := Restore(ctx, path, memberDir, RestoreOptions{Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	if first.Loaded.Revision != rev+DefaultBump || first.Loaded.Keys != info.Keys || first.SetAside != "" {
		t.Errorf("restored %+v; want revision %d", first, rev+DefaultBump)
	}
	to := start(t, memberDir)
	got, at := to.content(t)
	if diff := cmp.Diff(want, got); diff != "" || at != rev+DefaultBump {
		t.Errorf("at %d, want %d: %s", at, rev+DefaultBump, diff)
	}
	if to.member.ID() != first.Member || first.Member == member.BootstrapID || first.Member == from.member.ID() {
		t.Errorf("member %x, says %x; want a new ID", to.member.ID(), first.Member)
	}
	if _, err := to.Put(ctx, "/registry/new", nil, 0); err != nil {
		t.Error(err)
	}

	// Not while a member runs there, nor over one without leave.
	aside := filepath.Join(dir, "damaged")
	o := RestoreOptions{Logger: quiet(t), SetAside: aside, After: rev + 2*DefaultBump}
	if _, err := Restore(ctx, path, memberDir, o); !errors.Is(err, ErrInUse) {
		t.Errorf("Restore over a running member: %v; want ErrInUse", err)
	}
	to.stop()
	if _, err := Restore(ctx, path, memberDir, RestoreOptions{Logger: quiet(t)}); err == nil || !strings.Contains(err.Error(), "there is a member already") {
		t.Errorf("Restore over a member: %v; want an error that says so", err)
	}
	second, err := Restore(ctx, path, memberDir, o)
	if err != nil {
		t.Fatal(err)
	}
	if second.Loaded.Revision != rev+2*DefaultBump+1 || second.Member == first.Member || filepath.Dir(second.SetAside) != aside {
		t.Errorf("restored %+v; want revision %d and the old member in %s", second, rev+2*DefaultBump+1, aside)
	}
	again := start(t, memberDir)
	if got, _ := again.content(t); !slices.Equal(want, got) {
		t.Error(cmp.Diff(want, got))
	}
	// What was replaced is whole.
	old := start(t, second.SetAside)
	if _, kv, err := old.Get(ctx, "/registry/new", 0, false); kv == nil || err != nil {
		t.Errorf("key of the member that was set aside: %v, %v", kv, err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || slices.Contains(names, memberDir+buildSuffix) {
		t.Errorf("left: %v, %v", names, err)
	}
}

// TestRestoreCut stops Restore where a power cut may, and restores again.
func TestRestoreCut(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	from := start(t, filepath.Join(dir, "from"))
	from.use(t, "/registry/a", 60)
	path := filepath.Join(dir, "s.db")
	if _, err := Write(ctx, path, from); err != nil {
		t.Fatal(err)
	}
	want, _ := from.content(t)
	cut := errors.New("cut")
	for _, c := range []struct {
		step string
		old  bool // The old member is in place after the cut.
	}{{"flush", true}, {"swap", true}, {"set aside", false}} {
		t.Run(c.step, func(t *testing.T) {
			dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
			memberDir := filepath.Join(dir, "member")
			old := start(t, memberDir)
			if _, err := old.Put(ctx, "/old", []byte("v"), 0); err != nil {
				t.Fatal(err)
			}
			old.stop()
			r := restore{dir: memberDir, build: memberDir + buildSuffix, RestoreOptions: RestoreOptions{
				Logger: quiet(t), SetAside: filepath.Join(dir, "damaged"), Now: time.Now,
			}}
			r.steps.before = func(step string) error {
				if step != c.step {
					return nil
				}
				// A copy, for Restore cleans up after an error, and not
				// after a power cut.
				return errors.Join(os.CopyFS(state, os.DirFS(dir)), cut)
			}
			if _, err := r.run(ctx, path); !errors.Is(err, cut) {
				t.Fatalf("restore: %v; want the cut", err)
			}
			checkCut(t, filepath.Join(state, "member"), path, c.old, want)
		})
	}
}

// checkCut looks at a member directory after a cut, restores again and looks
// for the old member's key.
func checkCut(t *testing.T, memberDir, path string, old bool, want []string) {
	t.Helper()
	ctx := t.Context()
	now := start(t, memberDir)
	_, kv, err := now.Get(ctx, "/old", 0, false)
	if err != nil || (kv != nil) != old {
		t.Errorf("after the cut the old key is %v, %v; want it there: %v", kv, err, old)
	}
	now.stop()
	aside := filepath.Join(filepath.Dir(memberDir), "damaged")
	if _, err := Restore(ctx, path, memberDir, RestoreOptions{Logger: quiet(t), SetAside: aside}); err != nil {
		t.Fatal(err)
	}
	restored := start(t, memberDir)
	if got, _ := restored.content(t); !slices.Equal(want, got) {
		t.Error(cmp.Diff(want, got))
	}
	set, err := filepath.Glob(filepath.Join(aside, "*"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, dir := range set {
		if _, kv, err := start(t, dir).Get(ctx, "/old", 0, false); err == nil && kv != nil {
			found = true
		}
	}
	if !found {
		t.Errorf("the old member's data is in none of %v", set)
	}
	if _, err := os.Stat(memberDir + buildSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v; want it gone", memberDir+buildSuffix, err)
	}
}

// TestRestoreRefuses leaves everything as it was when the snapshot is bad.
func TestRestoreRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.db")
	if err := os.WriteFile(path, make([]byte, 8192+32), 0o600); err != nil {
		t.Fatal(err)
	}
	memberDir := filepath.Join(dir, "member")
	if _, err := Restore(t.Context(), path, memberDir, RestoreOptions{Logger: quiet(t)}); !errors.Is(err, ErrWrongHash) {
		t.Errorf("Restore: %v; want ErrWrongHash", err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v; want the snapshot alone", names, err)
	}
	// Rows that no store can have written.
	bad := sample(3)
	bad.rows[1].Key = bad.rows[0].Key
	bad.rows = append(bad.rows, &server.KeyValue{Key: "/x", CreateRevision: bad.revision, ModRevision: bad.revision, Version: 1, Lease: 5})
	if _, err := Write(t.Context(), path, bad); err == nil {
		t.Error("Write of a source that tells a key twice: no error")
	}
}
