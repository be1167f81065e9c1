package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store/space"
)

const (
	defaultInterval = 6 * time.Hour
	defaultKeep     = 5
	defaultMinFree  = 64 << 20
	// retryInterval is the pause after a snapshot failed, unless the interval
	// is shorter.
	retryInterval = 10 * time.Minute
)

// KeeperOptions configure a Keeper.
type KeeperOptions struct {
	// Dir holds the snapshots. It is made when missing.
	Dir string
	// Interval is the time between snapshots; 0: 6 hours.
	Interval time.Duration
	// Keep is how many of the newest are kept; 0: 5.
	Keep int
	// Days is of how many days one more is kept each; 0: none.
	Days int
	// MinFree is how many bytes of the file system a snapshot leaves free;
	// 0: 64 MiB.
	MinFree int64
	// Now is the clock that snapshots are named after; nil: time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// KeeperSource is a Source whose revision is known without reading all of it.
type KeeperSource interface {
	Source
	CurrentRevision(ctx context.Context) (int64, error)
	// DbSize returns about how many bytes the keys take.
	DbSize(ctx context.Context) (int64, error)
}

// ErrNoSpace says that a snapshot would leave too little free space.
var ErrNoSpace = errors.New("not enough free space for a snapshot")

// Keeper takes snapshots into a directory and removes old ones. One Keeper
// works on a directory at a time; its methods may be called concurrently.
type Keeper struct {
	o KeeperOptions

	mu     sync.Mutex // Held while a snapshot is taken or removed.
	status KeeperStatus
	state  sync.Mutex // Guards status.
}

// KeeperStatus says what became of the last attempt.
type KeeperStatus struct {
	// Last is the newest snapshot that this Keeper took, or found to be whole.
	Last *Info `json:"last,omitempty"`
	// Error is why the last attempt failed, At when.
	Error string    `json:"error,omitempty"`
	At    time.Time `json:"at,omitzero"`
}

// NewKeeper prepares the directory and removes what interrupted writes left.
func NewKeeper(o KeeperOptions) (*Keeper, error) {
	if o.Interval <= 0 {
		o.Interval = defaultInterval
	}
	if o.Keep <= 0 {
		o.Keep = defaultKeep
	}
	if o.MinFree <= 0 {
		o.MinFree = defaultMinFree
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	// The directory's own name is flushed, or a power cut may take it with all
	// that is in it. Always: an earlier start may have ended in between.
	err := os.MkdirAll(o.Dir, 0o700)
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(o.Dir))
	}
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	left, err := Clean(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	for _, path := range left {
		o.Logger.Info("snapshots: removed what an interrupted write left", "file", path)
	}
	return &Keeper{o: o}, nil
}

// Status returns what became of the last attempt.
func (k *Keeper) Status() KeeperStatus {
	k.state.Lock()
	defer k.state.Unlock()
	return k.status
}

// Run takes a snapshot each interval until ctx ends, unless nothing has
// changed. The first is due an interval after the newest there is.
func (k *Keeper) Run(ctx context.Context, source KeeperSource) {
	timer := time.NewTimer(k.untilDue())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next := k.o.Interval
		if err := k.takeChanged(ctx, source); err != nil && ctx.Err() == nil {
			k.note(nil, err)
			next = min(next, retryInterval)
			k.o.Logger.Warn("snapshots: none taken", "error", err, "again", next)
		}
		timer.Reset(next)
	}
}

// untilDue returns the time until the next snapshot: none when the newest is
// old, or of a time that has not come.
func (k *Keeper) untilDue() time.Duration {
	files, err := List(k.o.Dir)
	if err != nil || len(files) == 0 {
		return 0
	}
	age := k.o.Now().Sub(files[0].Time)
	if age < 0 {
		return 0
	}
	return max(0, k.o.Interval-age)
}

// takeChanged takes a snapshot unless the newest whole one has the current
// revision: a card wears out by each.
func (k *Keeper) takeChanged(ctx context.Context, source KeeperSource) error {
	revision, err := source.CurrentRevision(ctx)
	if err != nil {
		return err
	}
	files, err := List(k.o.Dir)
	if err != nil {
		return err
	}
	if len(files) > 0 && files[0].Revision == revision {
		if info, _ := Newest(k.o.Dir); info != nil && info.Revision == revision {
			k.note(info, nil)
			return nil
		}
	}
	_, err = k.Take(ctx, source)
	return err
}

// Take takes a snapshot now and removes those that are too many.
func (k *Keeper) Take(ctx context.Context, source KeeperSource) (Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := k.take(ctx, source)
	if err != nil {
		k.note(nil, err)
		return Info{}, err
	}
	k.note(&info, nil)
	k.o.Logger.Info("snapshots: taken", "file", info.Path, "revision", info.Revision, "keys", info.Keys, "bytes", info.Size)
	if err := k.retain(info.Path); err != nil {
		k.o.Logger.Warn("snapshots: old ones stay", "error", err)
	}
	return info, nil
}

func (k *Keeper) note(info *Info, err error) {
	k.state.Lock()
	defer k.state.Unlock()
	if err != nil {
		k.status.Error, k.status.At = err.Error(), k.o.Now().UTC()
		return
	}
	k.status = KeeperStatus{Last: info, At: k.o.Now().UTC()}
}

func (k *Keeper) take(ctx context.Context, source KeeperSource) (Info, error) {
	size, err := source.DbSize(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("snapshots: size of the store: %w", err)
	}
	if files, err := List(k.o.Dir); err == nil && len(files) > 0 {
		// The database packs values, a snapshot does not.
		size = max(size, files[0].Size+files[0].Size/4)
	}
	if err := k.makeSpace(size); err != nil {
		return Info{}, err
	}
	now := k.o.Now()
	return write(ctx, steps{}, k.o.Dir, func(i Info) string { return fileName(i.Revision, now) }, now, source)
}

// makeSpace removes the oldest snapshots when there is not enough space for
// one of size bytes and that makes enough. The newest whole one stays in any
// case.
func (k *Keeper) makeSpace(size int64) error {
	free, err := k.free()
	if err != nil || free >= size+k.o.MinFree {
		return err
	}
	files, err := List(k.o.Dir)
	if err != nil {
		return err
	}
	newest, damaged := Newest(k.o.Dir)
	for _, err := range damaged {
		k.o.Logger.Warn("snapshots: damaged", "error", err)
	}
	var away []File
	gain := free
	for i := len(files) - 1; i >= 0 && gain < size+k.o.MinFree; i-- {
		if newest != nil && files[i].Path != newest.Path {
			away = append(away, files[i])
			gain += files[i].Size
		}
	}
	if gain < size+k.o.MinFree {
		return fmt.Errorf("%w: %s has %d MiB, wanted are %d and %d that stay free", ErrNoSpace, k.o.Dir, free>>20, size>>20, k.o.MinFree>>20)
	}
	for _, f := range away {
		if err := k.remove(f, "space is short"); err != nil {
			return err
		}
	}
	return nil
}

// free returns the bytes that may be written to the file system.
func (k *Keeper) free() (int64, error) {
	u, err := space.Look(k.o.Dir)
	if err != nil {
		return 0, fmt.Errorf("snapshots: %w", err)
	}
	return u.Free, nil
}

// retain removes what is too many, never the one at path: it is known to be
// whole, whatever the others' names say.
func (k *Keeper) retain(path string) error {
	files, err := List(k.o.Dir)
	if err != nil {
		return err
	}
	for _, f := range surplus(files, k.o.Keep, k.o.Days) {
		if f.Path == path {
			continue
		}
		if err := k.remove(f, "enough newer ones"); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(k.o.Dir)
}

func (k *Keeper) remove(f File, why string) error {
	k.o.Logger.Info("snapshots: removed", "file", filepath.Base(f.Path), "revision", f.Revision, "why", why)
	if err := os.Remove(f.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("snapshots: %w", err)
	}
	return nil
}
