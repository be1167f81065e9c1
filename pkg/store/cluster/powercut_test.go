//go:build cgo && linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

const (
	// cutsVariable is shared with pkg/store/powerloss.
	cutsVariable = "CAIRN_POWERCUTS"
	seedVariable = "CAIRN_POWERCUT_SEED"
	defaultCuts  = 4
)

// number is a number from the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestRecoverPowerCut cuts the power at any point of a recovery. What is left
// is the former member or the recovered one, each with all keys; the next call
// or start tidies up, and recovering again succeeds.
func TestRecoverPowerCut(t *testing.T) {
	if err := powerloss.Available(); err != nil {
		t.Skip(err)
	}
	const count = 20
	c := newTestCluster(t)
	n := c.add()
	putKeys(t, c.client(t, n), "/t/", count)
	c.halt(n)
	former, err := member.ReadIdentity(memberDir(n.config.Dir))
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(c.dir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	recording, err := powerloss.Record(n.config.Dir, mount, func(dir string) error {
		r, err := PrepareRecovery(t.Context(), dir, log)
		if err == nil {
			_, err = r.Apply(t.Context())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	seed := number(t, seedVariable, rand.Uint64N(1<<32))
	old, states := 0, 0
	cuts := recording.Cuts(int(number(t, cutsVariable, defaultCuts)), seed)
	for _, cut := range append(cuts, recording.End) {
		for _, s := range recording.States(cut, seed, powerloss.Torn, powerloss.DetachedTorn) {
			dir := filepath.Join(c.dir, "cut")
			err := s.Write(dir)
			var was bool
			if err == nil {
				was, err = afterCut(t.Context(), dir, former.ID, count, log)
			}
			if was {
				old++
			}
			if err == nil && was && cut == recording.End {
				err = errors.New("the former member is there, although the recovery had ended")
			}
			if err != nil {
				t.Errorf("%s (%s=%d): %v", s, seedVariable, seed, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			states++
		}
	}
	t.Logf("%d states, %d with the former member", states, old)
}

// afterCut looks at what a cut left in dir and recovers it again. It reports
// whether the former member was there.
func afterCut(ctx context.Context, dir string, former uint64, count int64, log *slog.Logger) (bool, error) {
	replaced, err := FinishReplacing(dir)
	if err != nil {
		return false, err
	}
	id, err := member.ReadIdentity(memberDir(dir))
	if err != nil {
		return false, err
	}
	was := id.ID == former
	if was && replaced {
		return was, errors.New("the former member is there, and the recovery is said to have been finished")
	}
	for _, name := range []string{recoveringDir, replacingFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return was, fmt.Errorf("%s is left", name)
		}
	}
	if sole, err := soleVoter(Config{Dir: dir, Network: &Network{}, Join: []string{"others"}}); !was && (err != nil || !sole) {
		return was, fmt.Errorf("the recovered member does not know that it is alone: %w", err)
	}
	r, err := PrepareRecovery(ctx, dir, log)
	if err != nil {
		return was, fmt.Errorf("again: %w", err)
	}
	if want := count + 1; r.Plan.Snapshot.Keys != want { // And kine's health key.
		return was, errors.Join(fmt.Errorf("%d keys; want %d", r.Plan.Snapshot.Keys, want), r.Discard())
	}
	done, err := r.Apply(ctx)
	if err == nil && done.Revision <= r.Plan.Snapshot.Revision {
		err = fmt.Errorf("revision %d after %d", done.Revision, r.Plan.Snapshot.Revision)
	}
	return was, err
}
