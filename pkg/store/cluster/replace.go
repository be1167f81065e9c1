package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// What a node keeps beside its member's directory.
const (
	// replacingFile is there while another member takes the place of this
	// one. snapshot.Restore does that in one step, but the addresses and the
	// number of voters belong to the former member as well.
	replacingFile = "replacing.json"
	// restoredFile tells the revision of the last restore.
	restoredFile = "restored.json"
	// restoringSuffix is where snapshot.Restore builds, and where the former
	// member is for a moment.
	restoringSuffix = ".restoring"
	// lockFile is what dqlite locks in a member's directory.
	lockFile = "dqlite-lock"
)

// replacing is the content of replacingFile.
type replacing struct {
	// Former is the member that is replaced; 0: there was none, or none
	// that could be read.
	Former uint64 `json:"former"`
	// Revision is at least the one that the new member begins with.
	Revision int64 `json:"revision"`
}

// restored is the content of restoredFile.
type restored struct {
	Revision int64 `json:"revision"`
}

// RestorePlan says what a restore would do.
type RestorePlan struct {
	Snapshot snapshot.Info
	// Former is the member whose data would be set aside; 0: there is none.
	Former admin.ID
	// Newer are snapshots here that are newer than the one to be restored.
	Newer []snapshot.File
	// Others are the members of the former cluster, as far as they are known.
	Others []peer.Entry
}

// Replaced says what was done.
type Replaced struct {
	Snapshot snapshot.Info
	Member   admin.ID // the new one
	Keys     int64
	Revision int64 // which the store begins with
	// SetAside is where the former member's data are; "" if there were none.
	SetAside string
	// Moved and LostLeases are an etcd's keys that got a revision of their
	// own, and that live for ever because their lease is not in the snapshot.
	Moved, LostLeases int64
}

// PlanRestore verifies the snapshot in file, ours or an etcd's, and says what
// restoring it in dir would do. It changes nothing.
func PlanRestore(dir, file string) (RestorePlan, error) {
	info, err := snapshot.Verify(file)
	if err != nil {
		return RestorePlan{}, err
	}
	unlock, err := lockMember(dir)
	if err != nil {
		return RestorePlan{}, err
	}
	unlock()
	plan := RestorePlan{Snapshot: info}
	if id, err := member.ReadIdentity(memberDir(dir)); err == nil {
		plan.Former = admin.ID(id.ID)
	}
	plan.Others = otherMembers(dir, uint64(plan.Former))
	files, err := snapshot.List(snapshotsDir(dir))
	for _, f := range files {
		if f.Revision > info.Revision {
			plan.Newer = append(plan.Newer, f)
		}
	}
	return plan, err
}

// Restore makes the node in dir, which must not run, the only member of a new
// cluster with what is in the snapshot in file. The former member's data and
// addresses are kept in dir/damaged. A power cut leaves the node as it was, or
// restored; the rest is done at the next start or call.
func Restore(ctx context.Context, dir, file string, log *slog.Logger) (Replaced, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Replaced{}, err
	}
	if _, err := FinishReplacing(dir); err != nil {
		return Replaced{}, err
	}
	info, err := snapshot.Verify(file)
	if err != nil {
		return Replaced{}, err
	}
	unlock, err := lockMember(dir)
	if err != nil {
		return Replaced{}, err
	}
	unlock() // snapshot.Restore takes it again.
	after, err := revisionFloor(dir)
	if err != nil {
		return Replaced{}, err
	}
	note := replacing{Revision: max(info.Revision+snapshot.DefaultBump, after+1) + info.Keys + 1}
	if id, err := member.ReadIdentity(memberDir(dir)); err == nil {
		note.Former = id.ID
	}
	if err := writeJSONFile(filepath.Join(dir, replacingFile), note); err != nil {
		return Replaced{}, err
	}
	done, err := snapshot.Restore(ctx, file, memberDir(dir), snapshot.RestoreOptions{
		After: after, SetAside: filepath.Join(dir, damagedDir), Logger: log,
	})
	if _, finishErr := FinishReplacing(dir); err != nil || finishErr != nil {
		return Replaced{}, errors.Join(err, finishErr)
	}
	return Replaced{
		Snapshot: done.Snapshot, Member: admin.ID(done.Member), Keys: done.Loaded.Keys, Revision: done.Loaded.Revision,
		SetAside: done.SetAside, Moved: done.Loaded.Moved, LostLeases: done.Snapshot.LostLeases,
	}, nil
}

// FinishReplacing does what a restore or a recovery that was interrupted left to
// do in dir, and reports whether the new member had taken the former one's place.
// It does nothing when none was interrupted. The node must not run.
func FinishReplacing(dir string) (bool, error) {
	note, err := readJSONFile[replacing](filepath.Join(dir, replacingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, clearRecovering(dir)
	}
	if err != nil {
		return false, err
	}
	unlock, err := lockMember(dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	now, err := member.ReadIdentity(memberDir(dir))
	replaced := err == nil && now.ID != note.Former
	if replaced {
		if err := settle(dir, note); err != nil {
			return false, fmt.Errorf("finish what an interrupted restore left in %s: %w", dir, err)
		}
	}
	err = errors.Join(os.RemoveAll(filepath.Join(dir, recoveringDir)), os.Remove(filepath.Join(dir, replacingFile)), atomicfile.SyncDir(dir))
	return replaced, err
}

// clearRecovering removes what a recovery left that was interrupted before it
// was applied. One that is at work holds the member's lock.
func clearRecovering(dir string) error {
	at := filepath.Join(dir, recoveringDir)
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockMember(dir)
	if err != nil {
		return err
	}
	defer unlock()
	return os.RemoveAll(at)
}

// settle puts what belonged to the former member aside.
func settle(dir string, note replacing) error {
	if err := writeJSONFile(filepath.Join(dir, restoredFile), restored{note.Revision}); err != nil {
		return err
	}
	if err := saveVoters(dir, 1); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, damagedDir), 0o700); err != nil {
		return err
	}
	now := time.Now().UTC().Format("20060102T150405Z")
	for from, to := range map[string]string{
		filepath.Base(memberDir(dir)) + restoringSuffix: "member-" + now,
		bookFile: "addresses-" + now + ".json",
	} {
		if err := moveAside(filepath.Join(dir, from), filepath.Join(dir, damagedDir, to)); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Join(dir, damagedDir))
}

// moveAside renames what is there, to a name that is free.
func moveAside(from, to string) error {
	name := to
	for n := 2; ; n++ {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EEXIST):
			return fmt.Errorf("move %s to %s: %w", from, name, err)
		}
		name = fmt.Sprintf("%s-%d", to, n)
	}
}

// revisionFloor is a revision that clients may have seen: those of the
// snapshots here, and what came after the last restore. Restoring an old
// snapshot twice would go back without the second.
func revisionFloor(dir string) (int64, error) {
	var floor int64
	last, err := readJSONFile[restored](filepath.Join(dir, restoredFile))
	switch {
	case err == nil:
		floor = last.Revision + snapshot.DefaultBump
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	files, err := snapshot.List(snapshotsDir(dir))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		floor = max(floor, f.Revision)
	}
	return floor, nil
}

// lockMember keeps a member from being started on its directory, and finds out
// whether one runs.
func lockMember(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(memberDir(dir), lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%s: %w", memberDir(dir), snapshot.ErrInUse)
		}
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// otherMembers lists the members that the address book of dir tells of, except
// self. The book is no more than a hint.
func otherMembers(dir string, self uint64) []peer.Entry {
	book, err := peer.ReadBook(filepath.Join(dir, bookFile))
	if err != nil {
		return nil
	}
	var others []peer.Entry
	for _, e := range book {
		if e.ID != self {
			others = append(others, e)
		}
	}
	return others
}

func readJSONFile[T any](path string) (T, error) {
	var v T
	data, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

func writeJSONFile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}
