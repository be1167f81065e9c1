package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

// BootstrapID is the ID of a cluster's first member: dqlite makes a cluster
// of one out of an empty directory for this ID alone (dqlite.BootstrapID).
const BootstrapID uint64 = 0x2dc171858c3155be

// Role says what a member does in the cluster. The values are dqlite's
// (client.NodeRole).
type Role int

const (
	// Voter keeps a copy of the data and counts for the majority.
	Voter Role = iota
	// StandBy keeps a copy of the data and does not vote.
	StandBy
	// Spare does neither.
	Spare
)

// String returns the role's name as the store's messages use it.
func (r Role) String() string {
	switch r {
	case Voter:
		return "voter"
	case StandBy:
		return "standby"
	case Spare:
		return "spare"
	default:
		return fmt.Sprintf("role %d", int(r))
	}
}

// Info is one member as the configuration has it.
type Info struct {
	ID      uint64
	Address string // Its name, see [Name].
	Role    Role
}

// ErrNotLeader says that only the leader can do what was asked, and that this
// member is not it, or no longer.
var ErrNotLeader = errors.New("not the leader")

// namePrefix begins each member's raft address.
const namePrefix = "member-"

// Name returns the raft address of the member with the given ID.
func Name(id uint64) string { return fmt.Sprintf("%s%016x", namePrefix, id) }

// ParseName returns the ID of the member with the given raft address.
func ParseName(address string) (uint64, error) {
	digits, ok := strings.CutPrefix(address, namePrefix)
	id, err := strconv.ParseUint(digits, 16, 64)
	// One name for each ID, so that names can be compared.
	if !ok || err != nil || id == 0 || Name(id) != address {
		return 0, fmt.Errorf("member name %q: want %q and 16 hexadecimal digits that are not all 0", address, namePrefix)
	}
	return id, nil
}

// DialFunc opens a raft connection to the member with the given ID. The
// connection is used in one direction: raft's answers come by a connection that the
// other member opens.
type DialFunc func(ctx context.Context, id uint64) (net.Conn, error)

// SnapshotParams bound raft's log in numbers of entries. What decides, with
// entries of usual size, is its size: a snapshot comes when the log is as
// large as the database, and at least 8 MiB (pkg/build/binaries/dqlite).
type SnapshotParams struct {
	// Threshold is how many entries are logged between snapshots at most.
	Threshold uint
	// Trailing is how many entries are kept in memory after one at most, for
	// members that are behind. dqlite wants at least Threshold, and at least 4.
	Trailing uint
}

var defaultSnapshot = SnapshotParams{Threshold: 16384, Trailing: 16384}

// defaultLatency yields heartbeats each 150 ms and elections after 1.5 s.
const defaultLatency = 100 * time.Millisecond

// Options describe a member.
type Options struct {
	// Dir is its data directory, made when missing and nobody else's.
	Dir string
	// Join makes an empty directory that of a member with a random ID, which
	// waits until the leader adds it. Without it an empty directory becomes
	// the first member of a new cluster. A directory with an identity is what
	// it is.
	Join bool
	// NewTerm begins a raft term at the start, before anything is sent. A
	// sole voter needs it: dqlite makes it the leader in the term that it left
	// (canonical/dqlite issue 689), and entries that reached a standby and
	// were then lost here could not be told from those that follow. With
	// several voters elections do that, and a new term would cause one.
	NewTerm bool
	// Dial reaches other members. Nil: there are none.
	Dial DialFunc
	// Latency is the time that a message takes between members, from which dqlite
	// derives the heartbeat (1.5 times) and the election timeout (15
	// to 30 times). 0: 100 ms. dqlite counts in whole milliseconds.
	Latency time.Duration
	// Snapshot zero means the default, 16384 and 16384.
	Snapshot SnapshotParams
	// FailureDomain is told to other programs that ask dqlite for it.
	FailureDomain uint64
	// Logger nil: slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("options: no directory")
	}
	if o.Latency == 0 {
		o.Latency = defaultLatency
	}
	if o.Latency < time.Millisecond || o.Latency > time.Minute {
		return o, fmt.Errorf("options: latency %v: want between 1ms and 1m", o.Latency)
	}
	if o.Snapshot == (SnapshotParams{}) {
		o.Snapshot = defaultSnapshot
	}
	if s := o.Snapshot; s.Threshold == 0 || s.Trailing < max(s.Threshold, 4) {
		return o, fmt.Errorf("options: snapshot threshold %d, trailing %d: want a threshold and at least as much (and 4) trailing", s.Threshold, s.Trailing)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}
