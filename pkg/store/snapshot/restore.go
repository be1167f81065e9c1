package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

const (
	// DefaultBump is how much greater the revision is after a restore than in
	// the snapshot. etcd recommends this number for a snapshot that is up to a
	// week old: 1,500 writes a second would use it up in 7.7 days
	// (https://etcd.io/docs/v3.6/op-guide/recovery, "Revision Difference").
	DefaultBump = 1_000_000_000

	// buildSuffix follows the member directory's name while a new one is
	// built beside it.
	buildSuffix = ".restoring"
	// incomplete is a file in a directory that is being built. A directory
	// without it is complete, be it the new one or the one that it replaced.
	incomplete = ".incomplete"
	// lockFile is what dqlite locks (flock) in a directory that it works on.
	lockFile = "dqlite-lock"
)

// ErrInUse says that a member runs on a directory that shall be replaced.
var ErrInUse = errors.New("a member runs on it: stop cairn-store first")

// RestoreOptions configure Restore.
type RestoreOptions struct {
	// Bump is how much greater the revision becomes; 0: DefaultBump.
	Bump int64
	// After is a revision that is exceeded as well: the greatest that was
	// ever heard of, such as that of the newest snapshot in the directory.
	After int64
	// SetAside is the directory to which a member that is there is moved,
	// on the same file system. Empty: a member that is there is an error.
	SetAside string
	// Now names what is set aside; nil: time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Restored says what Restore did.
type Restored struct {
	Snapshot Info         `json:"snapshot"`
	Loaded   store.Loaded `json:"loaded"`
	// Member is the ID of the new member.
	Member uint64 `json:"member"`
	// SetAside is where the data is that was there before.
	SetAside string `json:"setAside,omitempty"`
}

// Restore makes memberDir the directory of a new cluster's only member, which
// holds what is in the snapshot at path, ours or an etcd's.
//
// The member has an ID of its own: members of the former cluster, which know
// more than the snapshot, do not take it for one of theirs and replace its
// data. They are to be set aside and to join it.
//
// It is built beside and takes memberDir's place in one step (renameat2), after
// everything is on the disk: a power cut leaves what was there before or the
// new member, and Restore may be called again.
func Restore(ctx context.Context, path, memberDir string, o RestoreOptions) (Restored, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := restore{RestoreOptions: o, dir: filepath.Clean(memberDir), build: filepath.Clean(memberDir) + buildSuffix}
	done, err := r.run(ctx, path)
	if err != nil {
		return Restored{}, fmt.Errorf("restore %s from %s: %w", memberDir, path, err)
	}
	return done, nil
}

// restore is one call of Restore.
type restore struct {
	RestoreOptions
	steps steps
	dir   string
	build string
}

func (r *restore) run(ctx context.Context, path string) (done Restored, err error) {
	s, err := Open(path)
	if err != nil {
		return Restored{}, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	done.Snapshot = s.Info
	unlock, err := r.lock()
	if err != nil {
		return Restored{}, err
	}
	defer unlock()
	if err := r.begin(); err != nil {
		return Restored{}, err
	}
	if done.Member, done.Loaded, err = r.fill(ctx, s); err == nil {
		err = r.flush()
	}
	if err != nil {
		return Restored{}, errors.Join(err, os.RemoveAll(r.build))
	}
	done.SetAside, err = r.replace()
	return done, err
}

// lock keeps a member from being started on the directory, and finds out
// whether one runs.
func (r *restore) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(r.dir, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// begin makes the directory to build in. What an earlier call left there is
// removed if it is not complete, and set aside if it is: it may be the member
// that had just been replaced.
func (r *restore) begin() error {
	there, err := occupied(r.dir)
	if err != nil {
		return err
	}
	if there && r.SetAside == "" {
		return errors.New("there is a member already: move the directory away or have it set aside")
	}
	if err := r.clearLeftover(); err != nil {
		return err
	}
	if err := os.Mkdir(r.build, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(r.build, incomplete), nil, 0o600)
}

func (r *restore) clearLeftover() error {
	there, err := occupied(r.build)
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(r.build, incomplete))
	switch {
	case there && errors.Is(err, fs.ErrNotExist):
		if r.SetAside == "" {
			return fmt.Errorf("%s holds a member that an interrupted restore left: move it away", r.build)
		}
		_, err := r.setAside()
		return err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return os.RemoveAll(r.build)
}

// occupied reports whether there is more in dir than files that count for
// nothing.
func occupied(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	for _, e := range entries {
		if e.Name()[0] != '.' {
			return true, nil
		}
	}
	return false, err
}

// fill builds the member.
func (r *restore) fill(ctx context.Context, s *Snapshot) (uint64, store.Loaded, error) {
	bump := r.Bump
	if bump == 0 {
		bump = DefaultBump
	}
	bump = max(bump, r.After-s.Info.Revision+1)
	m, err := member.Start(member.Options{Dir: r.build, Logger: r.Logger})
	if err != nil {
		return 0, store.Loaded{}, err
	}
	connector, err := m.Connector()
	var loaded store.Loaded
	if err == nil {
		loaded, err = store.Load(ctx, connector, s.Rows(), s.Info.Revision, bump)
	}
	if err := errors.Join(err, m.Close()); err != nil {
		return 0, store.Loaded{}, err
	}
	identity, err := member.Renumber(r.build)
	return identity.ID, loaded, err
}

// flush brings the directory to the disk and says that it is complete.
func (r *restore) flush() error {
	return r.steps.do("flush", func() error {
		entries, err := os.ReadDir(r.build)
		if err != nil {
			return err
		}
		for _, e := range entries {
			f, err := os.OpenFile(filepath.Join(r.build, e.Name()), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("flush %s: %w", f.Name(), err)
			}
		}
		if err := atomicfile.SyncDir(r.build); err != nil {
			return err
		}
		return errors.Join(os.Remove(filepath.Join(r.build, incomplete)), atomicfile.SyncDir(r.build))
	})
}

// replace gives the new directory its name, and the old one, if any, another,
// which it returns.
func (r *restore) replace() (string, error) {
	there, err := occupied(r.dir)
	if err != nil {
		return "", err
	}
	if !there {
		// There may be an empty directory, or one with a temporary file.
		if err := os.RemoveAll(r.dir); err != nil {
			return "", err
		}
		return "", r.swap(unix.RENAME_NOREPLACE)
	}
	if err := r.swap(unix.RENAME_EXCHANGE); err != nil {
		return "", err
	}
	return r.setAside()
}

func (r *restore) swap(flags uint) error {
	return r.steps.do("swap", func() error {
		if err := unix.Renameat2(unix.AT_FDCWD, r.build, unix.AT_FDCWD, r.dir, flags); err != nil {
			// Not in two steps: between them there would be no member,
			// and a start would make an empty one.
			return errors.Join(fmt.Errorf("rename %s to %s: %w", r.build, r.dir, err), os.RemoveAll(r.build))
		}
		return atomicfile.SyncDir(filepath.Dir(r.dir))
	})
}

// setAside moves what is in the build directory, a member that was replaced.
func (r *restore) setAside() (path string, err error) {
	err = r.steps.do("set aside", func() error {
		err := os.MkdirAll(r.SetAside, 0o700)
		if err == nil {
			// Its own name first, or a power cut could keep that the data were
			// moved into it, and lose it.
			err = atomicfile.SyncDir(filepath.Dir(r.SetAside))
		}
		if err != nil {
			return err
		}
		path = filepath.Join(r.SetAside, filepath.Base(r.dir)+"-"+r.Now().UTC().Format(nameTime))
		for n := 2; ; n++ {
			err := unix.Renameat2(unix.AT_FDCWD, r.build, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("rename %s to %s: %w", r.build, path, err)
			}
			path = fmt.Sprintf("%s-%d", path, n)
		}
		return errors.Join(atomicfile.SyncDir(r.SetAside), atomicfile.SyncDir(filepath.Dir(r.dir)))
	})
	return path, err
}
