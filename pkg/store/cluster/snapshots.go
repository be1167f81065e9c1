package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// snapshotsDir is where a node's snapshots are.
func snapshotsDir(dir string) string { return filepath.Join(dir, "snapshots") }

// snapshots is what a node keeps about its own.
type snapshots struct {
	mu     sync.Mutex
	keeper *snapshot.Keeper // nil until one is needed
}

// keeper returns the one that works on the node's directory. That the
// directory cannot be made is no reason not to serve: it is tried again.
func (n *Node) keeper() (*snapshot.Keeper, error) {
	n.snapshots.mu.Lock()
	defer n.snapshots.mu.Unlock()
	if n.snapshots.keeper != nil {
		return n.snapshots.keeper, nil
	}
	k, err := snapshot.NewKeeper(snapshot.KeeperOptions{
		Dir: snapshotsDir(n.config.Dir), Interval: n.config.SnapshotInterval, Keep: n.config.SnapshotKeep, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.snapshots.keeper = k
	return k, nil
}

// keepSnapshots takes snapshots on schedule while this member leads. One that
// is read back from the disk when the term ends goes on for a moment after it.
func (n *Node) keepSnapshots(ctx context.Context, s *service) {
	k, err := n.keeper()
	if err != nil {
		n.log.Warn("store: no snapshots are taken", "error", err)
		return
	}
	k.Run(ctx, s.backend)
}

// addSnapshots tells of the newest snapshot here, and of the last attempt of
// the member that leads.
func (n *Node) addSnapshots(s *admin.Status, leads bool) {
	if all, err := n.listSnapshots(); err == nil && len(all) > 0 {
		s.Snapshot = &all[0]
	}
	if k, err := n.keeper(); err != nil {
		s.SnapshotError = err.Error()
	} else if leads {
		s.SnapshotError = k.Status().Error
	}
}

// addLeaderSnapshots takes over what the leader tells.
func addLeaderSnapshots(s *admin.Status, theirs admin.Status) {
	s.SnapshotError = theirs.SnapshotError
	if theirs.Snapshot != nil && (s.Snapshot == nil || theirs.Snapshot.Revision > s.Snapshot.Revision) {
		s.Snapshot = theirs.Snapshot
	}
}

func (n *Node) listSnapshots() ([]admin.Snapshot, error) {
	files, err := snapshot.List(snapshotsDir(n.config.Dir))
	if err != nil {
		return nil, err
	}
	all := make([]admin.Snapshot, 0, len(files))
	for _, f := range files {
		all = append(all, admin.Snapshot{
			Name: filepath.Base(f.Path), Member: admin.ID(n.member.ID()), Revision: f.Revision, Size: f.Size, Time: f.Time,
		})
	}
	return all, nil
}

// handleTake takes a snapshot, here on the leader.
func (n *Node) handleTake(w http.ResponseWriter, r *http.Request) {
	s := n.route().service
	if s == nil {
		problem(w, http.StatusServiceUnavailable, errors.New("this member leads no more"))
		return
	}
	k, err := n.keeper()
	if err != nil {
		problem(w, http.StatusInternalServerError, err)
		return
	}
	info, err := k.Take(r.Context(), s.backend)
	switch {
	case errors.Is(err, snapshot.ErrNoSpace):
		problem(w, http.StatusInsufficientStorage, err)
	case err != nil:
		problem(w, http.StatusServiceUnavailable, err)
	default:
		writeJSON(w, http.StatusOK, admin.Snapshot{
			Name: filepath.Base(info.Path), Member: admin.ID(n.member.ID()),
			Revision: info.Revision, Size: info.Size, Time: info.Time, Keys: info.Keys, Hash: info.Hash,
		})
	}
}

// handleSnapshots lists those on this member, the newest first.
func (n *Node) handleSnapshots(w http.ResponseWriter, _ *http.Request) {
	all, err := n.listSnapshots()
	if err != nil {
		problem(w, http.StatusInternalServerError, err)
		return
	}
	writeJSON(w, http.StatusOK, all)
}

// handleDownload sends a snapshot. The name is one of those that are listed,
// never a path.
func (n *Node) handleDownload(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	files, err := snapshot.List(snapshotsDir(n.config.Dir))
	if err != nil {
		problem(w, http.StatusInternalServerError, err)
		return
	}
	i := slices.IndexFunc(files, func(f snapshot.File) bool { return filepath.Base(f.Path) == name })
	if i < 0 {
		problem(w, http.StatusNotFound, fmt.Errorf("no snapshot %q on this member", name))
		return
	}
	f, err := os.Open(files[i].Path)
	if errors.Is(err, fs.ErrNotExist) {
		problem(w, http.StatusNotFound, fmt.Errorf("snapshot %q was removed: newer ones took its place", name))
		return
	}
	if err != nil {
		problem(w, http.StatusInternalServerError, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(files[i].Size, 10))
	_, _ = io.Copy(w, f) // The caller sees a short body.
}
