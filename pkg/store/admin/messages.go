package admin

import (
	"fmt"
	"strconv"
	"time"
)

// ID identifies a member. It is written as 16 hexadecimal digits.
type ID uint64

func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// ParseID reads an ID as String writes it.
func ParseID(text string) (ID, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 || n == 0 {
		return 0, fmt.Errorf("member ID %q: want 16 hexadecimal digits", text)
	}
	return ID(n), nil
}

// Member is a member of the store's cluster as its leader knows it.
type Member struct {
	ID   ID     `json:"id"`
	Name string `json:"name"`
	// Role is voter, standby or spare.
	Role    string `json:"role"`
	Witness bool   `json:"witness,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Leader  bool   `json:"leader,omitempty"`
	// Online says that the member answered its leader a moment ago.
	Online    bool      `json:"online"`
	LastSeen  time.Time `json:"lastSeen,omitzero"`
	Addresses []string  `json:"addresses,omitempty"`
}

// Status is what a member tells about itself and, through its leader, about
// the cluster.
type Status struct {
	ID   ID     `json:"id"`
	Name string `json:"name"`
	// Phase says in a word what the member does: starting, joining, follower,
	// leader, removed, no-leader.
	Phase string `json:"phase"`
	// Message says what is wrong and what to do, if anything is.
	Message string `json:"message,omitempty"`
	Leader  ID     `json:"leader,omitempty"`
	Term    uint64 `json:"term"`
	// Quorum says that a majority of the voters is online, as far as is known.
	Quorum   bool     `json:"quorum"`
	Revision int64    `json:"revision,omitempty"` // the leader's
	Size     int64    `json:"size,omitempty"`     // of the database in bytes; the leader's
	Members  []Member `json:"members,omitempty"`
	Disk     Disk     `json:"disk"`
	// Snapshot is the newest one of those on this member and on the leader.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// SnapshotError says why the leader could not take the last one.
	SnapshotError string `json:"snapshotError,omitempty"`
}

// Disk tells how fast the member's disk takes a durable write.
type Disk struct {
	// Sync is the time of a synchronous write of 4 KiB when the member started.
	Sync time.Duration `json:"syncNanoseconds"`
	// Heartbeat and Election are the times that follow from it.
	Heartbeat time.Duration `json:"heartbeatNanoseconds"`
	Election  time.Duration `json:"electionNanoseconds"`
}

// Join asks the leader to take a member in.
type Join struct {
	ID        ID       `json:"id"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Witness   bool     `json:"witness,omitempty"`
	Zone      string   `json:"zone,omitempty"`
	// Replaces is the member that this machine was before it lost its data.
	Replaces ID `json:"replaces,omitempty"`
}

// Problem is the body of every answer that is not a success.
type Problem struct {
	Error string `json:"error"`
	// Leader is who can answer, when the one asked cannot.
	Leader ID `json:"leader,omitempty"`
}

// Snapshot is a copy of the store in a file on one member.
type Snapshot struct {
	// Name is the file's, and Member whose it is.
	Name     string    `json:"name"`
	Member   ID        `json:"member"`
	Revision int64     `json:"revision"`
	Size     int64     `json:"size"` // in bytes
	Time     time.Time `json:"time"` // by the clock of then
	// Keys and Hash, the SHA-256 at the file's end in hexadecimal digits, are
	// told of one that was just taken: a list reads names only.
	Keys int64  `json:"keys,omitempty"`
	Hash string `json:"hash,omitempty"`
}

// Lead asks that another member leads: To, or any that can when it is 0.
type Lead struct {
	To ID `json:"to,omitzero"`
}
