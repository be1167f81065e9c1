//go:build cgo && linux

package powerloss_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
	"github.com/cairn-os/cairn/pkg/store/powerloss"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// everyCut calls check for a state of each variant at up to n positions, with
// the number of marks before it.
func everyCut(t *testing.T, r *powerloss.Recording, n int, check func(dir string, marks int) error) {
	t.Helper()
	seed := seed(t)
	states, in := 0, scratch(t)
	for _, cut := range r.Cuts(n, seed) {
		marks := len(r.Notes(cut))
		for _, s := range r.States(cut, seed) {
			dir := filepath.Join(in, strconv.Itoa(states))
			err := s.Write(dir)
			if err == nil {
				before := listing(dir)
				if err = check(dir, marks); err != nil {
					err = fmt.Errorf("%w\n  the state: %s", err, before)
				}
			}
			if err != nil {
				t.Errorf("%s (%s=%d): %v", s, seedVariable, seed, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			states++
		}
	}
	t.Logf("%d states of %d positions", states, r.End-r.Start)
}

// TestBook changes the members' addresses: the file is a hint, but nobody shall
// find a damaged one.
func TestBook(t *testing.T) {
	certificates := t.TempDir()
	ca, err := peertest.NewCA(certificates)
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := ca.Issue(certificates, "node")
	if err != nil {
		t.Fatal(err)
	}
	r := record(t, nothing, func(r *powerloss.Recorder, dir string) error {
		n, err := peer.Listen(t.Context(), peer.Config{
			ID: 1, Listen: "127.0.0.1:0", Credentials: credentials, BookFile: filepath.Join(dir, "addresses.json"), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		for i := 1; i <= 3; i++ {
			err = errors.Join(err, n.Book().SetOwn(peer.Entry{ID: 1, Name: "node", Addresses: []string{fmt.Sprintf("10.0.0.%d:2380", i)}}))
			r.Mark(nil)
		}
		return errors.Join(err, n.Close())
	})
	everyCut(t, r, 60, func(dir string, marks int) error {
		data, err := os.ReadFile(filepath.Join(dir, "addresses.json"))
		if errors.Is(err, fs.ErrNotExist) && marks == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		var book struct{ Members []peer.Entry }
		if err := json.Unmarshal(data, &book); err != nil {
			return err
		}
		if len(book.Members) != 1 || book.Members[0].Sequence < uint64(marks) {
			return fmt.Errorf("%s; want change %d or a later one", data, marks)
		}
		return nil
	})
}

// filled returns a running store with keys, and stops it with the test.
func filled(t *testing.T, dir string, keys int) *store.Backend {
	t.Helper()
	b, stop, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	for i := range keys {
		if _, err := b.Create(t.Context(), prefix+strconv.Itoa(i), []byte(strings.Repeat("v", 500)), 0); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestSnapshots takes three snapshots and keeps two: each that has a name is
// whole, and the newest is there.
func TestSnapshots(t *testing.T) {
	b := filled(t, filepath.Join(t.TempDir(), memberDir), 20)
	var revisions []int64
	r := record(t, nothing, func(r *powerloss.Recorder, dir string) error {
		clock := time.Unix(1_800_000_000, 0)
		k, err := snapshot.NewKeeper(snapshot.KeeperOptions{
			Dir: filepath.Join(dir, "snapshots"), Keep: 2, MinFree: 1, Logger: slog.New(slog.DiscardHandler),
			Now: func() time.Time { clock = clock.Add(time.Hour); return clock },
		})
		for i := 0; i < 3 && err == nil; i++ {
			var rev int64
			rev, err = b.Put(t.Context(), prefix+"more", []byte(strconv.Itoa(i)), 0)
			revisions = append(revisions, rev)
			if err == nil {
				_, err = k.Take(t.Context(), b)
			}
			r.Mark(nil)
		}
		return err
	})
	everyCut(t, r, 60, func(dir string, marks int) error {
		newest, damaged := snapshot.Newest(filepath.Join(dir, "snapshots"))
		if len(damaged) > 0 {
			return errors.Join(damaged...)
		}
		if marks > 0 && (newest == nil || newest.Revision < revisions[marks-1]) {
			return fmt.Errorf("the newest snapshot is %+v; one of revision %d was taken", newest, revisions[marks-1])
		}
		return nil
	})
}

// TestRestore restores a snapshot over a member: what was there before is
// there, or what was restored, whole, and restoring can be repeated.
func TestRestore(t *testing.T) {
	b := filled(t, filepath.Join(t.TempDir(), memberDir), 20)
	file := filepath.Join(t.TempDir(), "s.db")
	if _, err := snapshot.Write(t.Context(), file, b); err != nil {
		t.Fatal(err)
	}
	restore := func(dir string) error {
		_, err := snapshot.Restore(context.Background(), file, filepath.Join(dir, memberDir), snapshot.RestoreOptions{
			SetAside: filepath.Join(dir, "damaged"), Logger: slog.New(slog.DiscardHandler),
		})
		return err
	}
	r := record(t, func(dir string) error {
		b, stop, err := open(filepath.Join(dir, memberDir))
		if err != nil {
			return err
		}
		_, err = b.Create(t.Context(), prefix+"before", nil, 0)
		return errors.Join(err, stop())
	}, func(r *powerloss.Recorder, dir string) error {
		err := restore(dir)
		r.Mark(nil)
		return err
	})
	v := &verifier{}
	everyCut(t, r, min(cuts(t)/10, 40), func(dir string, marks int) error {
		got := v.ask(t, question{Dir: filepath.Join(dir, memberDir)})
		_, old := got.Keys[prefix+"before"]
		switch {
		case got.Err != "":
			return errors.New(got.Err)
		case marks == 0 && old && len(got.Keys) == 1, !old && len(got.Keys) == 20:
		default:
			return fmt.Errorf("keys %v; want those before or those restored, which had ended: %t", got.Keys, marks > 0)
		}
		if !old && len(kept(dir)) != 1 {
			return fmt.Errorf("the former member is at %q; want one place", kept(dir))
		}
		if err := restore(dir); err != nil {
			return fmt.Errorf("again: %w", err)
		}
		_, err := member.ReadIdentity(filepath.Join(dir, memberDir))
		return err
	})
}

// kept returns where members are that were replaced.
func kept(dir string) []string {
	var places []string
	for _, pattern := range []string{"damaged/*", memberDir + ".restoring"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern, "identity.json")) // The pattern is well formed.
		places = append(places, found...)
	}
	return places
}

// TestSetAside sets a damaged directory aside: it is in one of the two places,
// whole.
func TestSetAside(t *testing.T) {
	content := map[string]string{"metadata1": "damaged", "0000000000000001-0000000000000001": strings.Repeat("x", 10_000)}
	r := record(t, func(dir string) error {
		err := os.Mkdir(filepath.Join(dir, memberDir), 0o700)
		for name, text := range content {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, memberDir, name), []byte(text), 0o600))
		}
		return err
	}, func(r *powerloss.Recorder, dir string) error {
		found, err := damage.Inspect(filepath.Join(dir, memberDir))
		if err != nil {
			return err
		}
		_, err = damage.SetAside(found, filepath.Join(dir, "damaged"))
		r.Mark(nil)
		return err
	})
	everyCut(t, r, 60, func(dir string, marks int) error {
		places, err := filepath.Glob(filepath.Join(dir, "damaged", "*"))
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(dir, memberDir)); err == nil {
			if places = append(places, filepath.Join(dir, memberDir)); marks > 0 {
				return errors.New("it is back where it was")
			}
		}
		if len(places) != 1 {
			return fmt.Errorf("it is at %q; want one place", places)
		}
		there := files(t, places[0])
		for name, text := range content {
			if there[name] != text {
				return fmt.Errorf("%s has changed", name)
			}
		}
		return nil
	})
}
