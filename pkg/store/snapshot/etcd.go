package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
)

// The buckets of etcd 3.6 (server/v3/storage/schema). Those about members,
// alarms and users stay empty.
var etcdBuckets = []string{
	"alarm", "auth", "authRoles", "authUsers", "cluster", keyBucket, leaseBucket, "members", "members_removed", metaBucket,
}

const (
	keyBucket   = "key"   // revision -> mvccpb.KeyValue, the history
	leaseBucket = "lease" // lease id, 8 bytes big-endian -> leasepb.Lease
	metaBucket  = "meta"
	// noteBucket is our own. An etcd takes no notice of it.
	noteBucket = "cairn"
	noteKey    = "snapshot"

	finishedCompact  = "finishedCompactRev"
	scheduledCompact = "scheduledCompactRev"
	storageVersion   = "storageVersion"

	revisionSize = 17 // main 8, '_', sub 8; one byte more marks a tombstone
	tombstone    = 't'
	// maxTTL is etcd's own bound on the seconds of a lease
	// (MaxLeaseTTL of server/v3/lease).
	maxTTL = 9_000_000_000
)

// metaValues are the keys of the bucket meta for a keyspace that was
// compacted at revision: etcd takes that for the current revision if the last
// change was a deletion, of which the snapshot knows nothing. Index and term
// are what `etcdutl snapshot restore` replaces by its own.
func metaValues(revision int64) map[string][]byte {
	one := binary.BigEndian.AppendUint64(nil, 1)
	at := etcdRevision{main: revision}.append(nil)
	return map[string][]byte{
		"consistent_index": one,
		"term":             one,
		finishedCompact:    at,
		scheduledCompact:   at,
		storageVersion:     []byte("3.6.0"),
	}
}

// etcdRevision is a key of the bucket key. Changes of one transaction share
// main.
type etcdRevision struct {
	main, sub int64
	deleted   bool
}

func (r etcdRevision) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint64(to, uint64(r.main))
	to = append(to, '_')
	return binary.BigEndian.AppendUint64(to, uint64(r.sub))
}

func parseRevision(b []byte) (etcdRevision, error) {
	r := etcdRevision{deleted: len(b) == revisionSize+1 && b[revisionSize] == tombstone}
	if len(b) != revisionSize && !r.deleted || b[8] != '_' {
		return etcdRevision{}, fmt.Errorf("revision %q: no revision of an etcd", b)
	}
	r.main = int64(binary.BigEndian.Uint64(b))
	r.sub = int64(binary.BigEndian.Uint64(b[9:]))
	if r.main < 0 || r.sub < 0 {
		return etcdRevision{}, fmt.Errorf("revision %q: negative", b)
	}
	return r, nil
}

// note is what a snapshot of ours says of itself.
type note struct {
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
	Keys     int64     `json:"keys"`
}

func marshalKeyValue(kv *server.KeyValue) ([]byte, error) {
	out := mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
		Version: kv.Version, Lease: kv.Lease,
	}
	return out.Marshal()
}

// marshalLease returns the lease of a key of ours: in kine's front its id is
// its time to live in seconds.
func marshalLease(ttl int64) (key, value []byte, err error) {
	value, err = (&leasepb.Lease{ID: ttl, TTL: ttl}).Marshal()
	return binary.BigEndian.AppendUint64(nil, uint64(ttl)), value, err
}

// parseLease returns a lease's id and the seconds that it was granted for.
func parseLease(key, value []byte) (id, ttl int64, err error) {
	var l leasepb.Lease
	if err := l.Unmarshal(value); err != nil {
		return 0, 0, fmt.Errorf("lease %x: %w", key, err)
	}
	if len(key) != 8 || int64(binary.BigEndian.Uint64(key)) != l.ID {
		return 0, 0, fmt.Errorf("lease %x: says that it is lease %x", key, uint64(l.ID))
	}
	if l.TTL <= 0 || l.TTL > maxTTL {
		return 0, 0, fmt.Errorf("lease %x: lives %d seconds; want 1 to %d", key, l.TTL, int64(maxTTL))
	}
	return l.ID, l.TTL, nil
}

func parseNote(value []byte) (note, error) {
	var n note
	if err := json.Unmarshal(value, &n); err != nil {
		return note{}, fmt.Errorf("key %q of bucket %q: %w", noteKey, noteBucket, err)
	}
	return n, nil
}
