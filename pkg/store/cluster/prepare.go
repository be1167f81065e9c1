package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
	"github.com/cairn-os/cairn/pkg/store/space"
)

// What the store keeps in its directory, beside the member's own.
const (
	bookFile    = "addresses.json"
	damagedDir  = "damaged"
	reserveFile = "reserve"
)

// markInterval is how often it is noted how far the log has come.
const markInterval = 10 * time.Minute

// prepare makes the member's directory ready before dqlite reads it: it looks
// for damage, mends what a power cut leaves, and sets aside what must not be
// used if other members have the data.
func (n *Node) prepare() error {
	if _, err := FinishReplacing(n.config.Dir); err != nil {
		return err
	}
	dir := memberDir(n.config.Dir)
	report, err := damage.Inspect(dir)
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		n.log.Info("store: found in the member's directory", "severity", f.Severity, "file", f.File, "finding", f.Text)
	}
	if report.Damaged() {
		if err := n.setAside(report); err != nil {
			return err
		}
	} else if err := damage.Repair(report); err != nil {
		return err
	}
	return n.rejoin(report.Empty)
}

// setAside moves a damaged directory away when others have the data, and says
// what to do when nobody has.
func (n *Node) setAside(report damage.Report) error {
	others, err := n.others()
	if err != nil {
		return err
	}
	sole, err := soleVoter(n.config)
	if err != nil {
		return err
	}
	if n.config.Network == nil || sole || len(others) == 0 {
		err := damage.Refusal(report, n.newestSnapshot())
		if len(others) > 0 {
			return fmt.Errorf("%w. A standby has a copy, perhaps without the last writes: `cairnctl store recover` on %s makes a cluster of it", err, others[0].Name)
		}
		return err
	}
	if id, err := member.ReadIdentity(report.Dir); err == nil {
		n.replaces = id.ID
	}
	path, err := damage.SetAside(report, filepath.Join(n.config.Dir, damagedDir))
	if path == "" {
		return err
	}
	n.log.Error("store: this member's data are damaged; they were set aside and the data come anew from the other members",
		"reason", report.Reason(), "path", path, "error", err)
	return nil
}

// rejoin makes a member without data join those that it knew: an address book
// that lists others, or other servers that its machine knows, tell of a cluster,
// and a new one must not be founded beside it. empty says that the member has
// no entry of the log; it may have begun to join and not been taken in yet.
func (n *Node) rejoin(empty bool) error {
	id, err := member.ReadIdentity(memberDir(n.config.Dir))
	missing := errors.Is(err, fs.ErrNotExist)
	if !missing && (err != nil || !empty) || len(n.config.Join) > 0 || n.config.Network == nil {
		return nil
	}
	if !missing && id.ID == member.BootstrapID {
		return n.mayBegin() // It would begin, whatever it is told to join.
	}
	others, err := n.others()
	if err != nil {
		return err
	}
	for _, e := range others {
		n.config.Join = append(n.config.Join, e.Addresses...)
	}
	n.config.Join = n.places()
	if len(n.config.Join) > 0 {
		n.log.Warn("store: this machine has no data of the store and knows of other members: it joins them", "by", n.config.Join,
			"if they are gone for good", "restore a snapshot (cairnctl store restore)")
		return nil
	}
	if !missing {
		return nil
	}
	// The note survives what is set aside.
	if sole, err := soleVoter(n.config); err != nil || !sole {
		return errors.Join(err, errors.New("this machine was one of several members, its data are gone and it knows no address of the others: give --join; it must not found a second cluster"))
	}
	return n.mayBegin()
}

// mayBegin refuses to begin a store where one was begun before, whose data are
// gone: it would pass for that one, empty, and all that runs would be stopped.
func (n *Node) mayBegin() error {
	if n.config.Begun == "" {
		return nil
	}
	_, err := os.Lstat(n.config.Begun)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look whether the store was begun before: %w", err)
	}
	return fmt.Errorf("this server's store was begun before, and its data are gone from %s: it does not begin an empty one in their place. "+
		"Restore a snapshot with `cairnctl store restore`, or remove %s to begin anew with nothing", memberDir(n.config.Dir), n.config.Begun)
}

// noteBegun leaves the mark that mayBegin looks for. A power cut before it
// leaves a store with data and without the mark, which gets it at the next start.
func (n *Node) noteBegun() {
	if n.config.Begun == "" {
		return
	}
	if _, err := os.Lstat(n.config.Begun); err == nil {
		return
	}
	text := "The store of this server was begun. While this file is here no empty one is begun in its place.\n"
	if err := atomicfile.Write(n.config.Begun, []byte(text), 0o600); err != nil {
		n.log.Warn("store: note that the store was begun", "error", err)
	}
}

// others are the members in the address book beside this one.
func (n *Node) others() ([]peer.Entry, error) {
	entries, err := peer.ReadBook(filepath.Join(n.config.Dir, bookFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		n.log.Warn("store: the address book is damaged", "error", err)
		return nil, nil
	}
	var others []peer.Entry
	for _, e := range entries {
		if e.Name != n.config.Name {
			others = append(others, e)
		}
	}
	return others, nil
}

// newestSnapshot is the path of the newest snapshot that verifies, or "".
func (n *Node) newestSnapshot() string {
	info, damaged := snapshot.Newest(snapshotsDir(n.config.Dir))
	for _, err := range damaged {
		n.log.Warn("store: a snapshot is damaged", "error", err)
	}
	if info == nil {
		return ""
	}
	return info.Path
}

// errExhausted ends a member of a cluster; its process starts anew.
var errExhausted = errors.New("the disk is full to the end: this member stops until there is space, before it is harmed by what it cannot store")

// watchSpace reserves space, and waits until there is enough to start: dqlite
// does not start on a full disk, and a member of a cluster that does is harmed
// when it is sent a snapshot that it cannot store (see pkg/store/space).
func (n *Node) watchSpace(ctx context.Context) error {
	reserve, err := space.NewReserve(filepath.Join(n.config.Dir, reserveFile), 0)
	if err != nil {
		n.log.Warn("store: no space is reserved", "error", err)
	}
	if n.space, err = space.NewMonitor(n.config.Dir, reserve, space.Thresholds{}, n.log); err != nil {
		return err
	}
	enough, err := n.enough()
	if err != nil {
		return err
	}
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	for said := false; ; {
		state, _, err := n.space.Look()
		n.pressure.Store(int32(pressures[state]))
		if err != nil || state <= enough {
			return err
		}
		if !said {
			said = true
			n.log.Error("store: the disk is full; the member starts as soon as there is space", "dir", n.config.Dir)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// enough is how short of space the member may start. To the only voter nobody
// sends a snapshot, and without it nothing on its machine goes on that could
// make space.
func (n *Node) enough() (space.State, error) {
	sole, err := soleVoter(n.config)
	if sole {
		return space.Full, err
	}
	return space.Low, err
}

// pressures says what the store does in each state of the disk.
var pressures = map[space.State]store.Pressure{
	space.OK: store.Relaxed, space.Low: store.Shed, space.Full: store.Full, space.Exhausted: store.Full,
}

// full says that the disk is.
func (n *Node) full() bool { return store.Pressure(n.pressure.Load()) == store.Full }

// followSpace tells the Backend how short space is, until ctx ends. One of
// several members ends when there is none at all.
func (n *Node) followSpace(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n.space.Run(ctx, func(state space.State, _ space.Usage) {
		if state == space.Exhausted && n.config.Network != nil && !n.alone(ctx) {
			cancel(errExhausted)
		}
		n.pressure.Store(int32(pressures[state]))
		if s := n.route().service; s != nil {
			s.backend.SetPressure(pressures[state])
		}
	})
	if err := context.Cause(ctx); errors.Is(err, errExhausted) {
		return err
	}
	return nil
}

// alone says that there is no other member.
func (n *Node) alone(ctx context.Context) bool {
	infos, err := n.member.Members(ctx)
	return err == nil && len(infos) == 1
}

// mark notes now and then, and at the end, how far the log has come.
func (n *Node) mark(ctx context.Context) error {
	ticker := time.NewTicker(markInterval)
	defer ticker.Stop()
	for {
		if err := damage.UpdateMark(memberDir(n.config.Dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			n.log.Warn("store: note how far the log has come", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
