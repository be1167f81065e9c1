package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

const (
	// recoveringDir is where a recovery works. All in it can be made again.
	recoveringDir = "recovering"
	// recoverCopies is how often the member's size must be free: for the
	// copy, the snapshot of it and the new member.
	recoverCopies = 3
	// leadLimit is how long a lone member may take to lead and to open its
	// database: the log is applied meanwhile.
	leadLimit = time.Minute
	leadRest  = 100 * time.Millisecond
)

// ErrNoCopy says that a member has nothing to recover a cluster from.
var ErrNoCopy = errors.New("this member has no copy of the data: it was a spare, or never joined; recover on another")

// RecoveryPlan says what a recovery would do.
type RecoveryPlan struct {
	Member admin.ID
	// Term and Index are those of the last entry of its log. Of several members, the one
	// with the highest term, and then the highest index, has seen most.
	Term, Index uint64
	// Snapshot is what the member's data hold, all entries of its log applied.
	Snapshot snapshot.Info
	// Others are the other members, as far as they are known.
	Others []peer.Entry
	// Findings are what a power cut left in the member's directory, if anything.
	Findings []string
}

// Recovery is one that has been prepared: what the member's data hold has been
// read out, and nothing is changed yet. Apply or Discard ends it.
type Recovery struct {
	Plan RecoveryPlan

	dir    string
	log    *slog.Logger
	unlock func()
}

// PrepareRecovery reads the data of the member in dir, which must not run, as
// the only member of a cluster would have them, and says what a recovery would
// bring back.
//
// All is done on a copy, in dir/recovering: dqlite's own recovery
// may delete what it takes for damaged, and begins in a raft term that the log
// has long passed. The copy is given a configuration with itself
// alone, applies its log, and is read into a snapshot; it never serves. Apply
// then restores that snapshot: so a recovered store is one that was
// restored, with a new ID and revisions that never go back, for the members
// that are lost may have acknowledged changes which this one never saw.
//
// A power cut at any time leaves the member as it was, and dir/recovering, which
// the next call removes; or, in Apply, what [Restore] says.
func PrepareRecovery(ctx context.Context, dir string, log *slog.Logger) (_ *Recovery, err error) {
	r := &Recovery{dir: dir, log: log}
	report, err := damage.Inspect(memberDir(dir))
	switch {
	case errors.Is(err, damage.ErrRunning):
		return nil, fmt.Errorf("%s: %w", memberDir(dir), snapshot.ErrInUse)
	case err != nil:
		return nil, err
	case report.Empty:
		return nil, fmt.Errorf("%s: %w", memberDir(dir), ErrNoCopy)
	case report.Damaged():
		return nil, r.refuse(report)
	}
	if r.unlock, err = lockMember(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Discard())
		}
	}()
	if err := os.RemoveAll(r.work()); err != nil {
		return nil, err
	}
	identity, err := member.ReadIdentity(memberDir(dir))
	if err != nil {
		return nil, err
	}
	r.Plan = RecoveryPlan{
		Member: admin.ID(identity.ID), Term: report.LastTerm, Index: report.LastIndex, Others: otherMembers(dir, identity.ID),
	}
	for _, f := range report.Findings {
		r.Plan.Findings = append(r.Plan.Findings, f.String())
	}
	if r.Plan.Snapshot, err = r.read(ctx); err != nil {
		return nil, fmt.Errorf("recover %s: %w", dir, err)
	}
	return r, nil
}

func (r *Recovery) work() string { return filepath.Join(r.dir, recoveringDir) }

// refuse says why damaged data are not recovered from.
func (r *Recovery) refuse(report damage.Report) error {
	way := "recover on another member, or restore a snapshot: there is none here"
	if newest, _ := snapshot.Newest(snapshotsDir(r.dir)); newest != nil {
		way = fmt.Sprintf("recover on another member, or restore the newest good snapshot here: %s (revision %d, %s)",
			newest.Path, newest.Revision, newest.Time.Format(time.RFC3339))
	}
	return fmt.Errorf("%w. Nothing was changed: %s", report.Err(), way)
}

// read makes a snapshot of a copy of the member's data.
func (r *Recovery) read(ctx context.Context) (info snapshot.Info, err error) {
	at := filepath.Join(r.work(), "member")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return info, err
	}
	if err := copyMember(ctx, memberDir(r.dir), at); err != nil {
		return info, err
	}
	report, err := damage.Inspect(at)
	if err == nil {
		err = damage.Repair(report)
	}
	if err != nil {
		return info, err
	}
	if _, err := member.Renumber(at); err != nil {
		return info, err
	}
	m, err := member.Start(member.Options{Dir: at, Logger: r.log})
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	b, err := r.open(ctx, m)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	// A Keeper for the name that it gives. There is space: that was looked at.
	k, err := snapshot.NewKeeper(snapshot.KeeperOptions{Dir: filepath.Join(r.work(), "snapshots"), MinFree: 1, Logger: r.log})
	if err != nil {
		return info, err
	}
	return k.Take(ctx, b)
}

// open waits until the copy leads itself.
func (r *Recovery) open(ctx context.Context, m *member.Member) (*store.Backend, error) {
	ctx, cancel := context.WithTimeout(ctx, leadLimit)
	defer cancel()
	for {
		connector, err := m.Connector()
		if err != nil {
			return nil, err
		}
		b, err := store.Open(ctx, store.Options{Connector: connector, Logger: r.log})
		if err == nil {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(leadRest):
		}
	}
}

// Apply makes the member in the directory the only one of a new cluster.
func (r *Recovery) Apply(ctx context.Context) (Replaced, error) {
	r.unlock()
	r.unlock = nil
	// Kept beside the other snapshots: it is needed until the store serves,
	// and worth to have afterwards.
	kept := filepath.Join(snapshotsDir(r.dir), filepath.Base(r.Plan.Snapshot.Path))
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return Replaced{}, err
	}
	if err := os.Rename(r.Plan.Snapshot.Path, kept); err != nil {
		return Replaced{}, err
	}
	if err := errors.Join(atomicfile.SyncDir(filepath.Dir(kept)), atomicfile.SyncDir(r.dir)); err != nil {
		return Replaced{}, err
	}
	done, err := Restore(ctx, r.dir, kept, r.log)
	return done, errors.Join(err, r.Discard())
}

// Discard ends the recovery without a change.
func (r *Recovery) Discard() error {
	err := os.RemoveAll(r.work())
	if r.unlock != nil {
		r.unlock()
		r.unlock = nil
	}
	return err
}

// copyMember copies a member's files, if there is space for what is done with
// them.
func copyMember(ctx context.Context, from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	var size int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(to, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", to, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < recoverCopies*size {
		return fmt.Errorf("not enough free space: the work is done on a copy and needs %d MiB in %s, which has %d", recoverCopies*size>>20, to, free>>20)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == lockFile {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
