package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Info says what a snapshot holds.
type Info struct {
	Path string `json:"path"`
	// Revision is the store's when the snapshot was taken.
	Revision int64 `json:"revision"`
	// Keys is the number of live keys.
	Keys int64 `json:"keys"`
	// Size is the file's in bytes.
	Size int64 `json:"size"`
	// Hash is the SHA-256 at the end of the file, in hexadecimal digits.
	Hash string `json:"hash"`
	// Time is when the snapshot was taken, by the clock of the machine that
	// took it; of an etcd's snapshot it is that of the file.
	Time time.Time `json:"time"`
	// LostLeases is the number of keys whose lease the snapshot does not
	// know. An etcd keeps such keys for ever, and so do we.
	LostLeases int64 `json:"lostLeases,omitempty"`
}

// ErrNoHash says that a file does not end with a hash of itself.
var ErrNoHash = errors.New("no SHA-256 at its end: not a snapshot, cut off, or a copy of an etcd's member/snap/db (take one with `etcdctl snapshot save`)")

// ErrWrongHash says that a file is not what was written once.
var ErrWrongHash = errors.New("damaged: its content does not match the SHA-256 at its end")

// Snapshot is an open snapshot that has been verified.
type Snapshot struct {
	Info Info

	closer io.Closer
	file   *file
	leases map[int64]int64 // id -> seconds to live
	latest map[string]version
}

// version is which version of a key counts.
type version struct {
	at    etcdRevision
	lease int64 // as in the file
}

// Verify reads the whole snapshot at path and says what it holds, or what is
// wrong with it.
func Verify(path string) (Info, error) {
	s, err := Open(path)
	if err != nil {
		return Info{}, err
	}
	return s.Info, s.Close()
}

// Open verifies the snapshot at path, ours or an etcd's, and opens it for
// reading.
func Open(path string) (*Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	stat, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", path, errors.Join(err, f.Close()))
	}
	s, err := open(f, stat.Size())
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", path, errors.Join(err, f.Close()))
	}
	s.closer = f
	s.Info.Path = path
	if s.Info.Time.IsZero() {
		s.Info.Time = stat.ModTime().UTC()
	}
	return s, nil
}

// Close closes the file.
func (s *Snapshot) Close() error { return s.closer.Close() }

// open verifies a snapshot of size bytes.
func open(r io.ReaderAt, size int64) (*Snapshot, error) {
	switch {
	case size == 0:
		return nil, errors.New("empty")
	// As etcdutl does it: pages are multiples of 512 bytes, hashes are not.
	case size%minPageSize != sha256.Size:
		return nil, ErrNoHash
	}
	content := size - sha256.Size
	want := make([]byte, sha256.Size)
	if _, err := r.ReadAt(want, content); err != nil {
		return nil, err
	}
	got, err := hashOf(r, content)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(got, want) {
		return nil, fmt.Errorf("%w: %x, not %x", ErrWrongHash, got, want)
	}
	s := &Snapshot{Info: Info{Size: size, Hash: hex.EncodeToString(want)}, leases: map[int64]int64{}, latest: map[string]version{}}
	if s.file, err = openFile(r, content); err != nil {
		return nil, err
	}
	return s, s.check()
}

// check reads every page once and notes what counts.
func (s *Snapshot) check() error {
	s.file.seen = make([]uint64, s.file.pages/64+1)
	defer func() { s.file.seen = nil }()
	if _, ok := s.file.buckets[keyBucket]; !ok {
		return fmt.Errorf("a bbolt database without the bucket %q: of another program", keyBucket)
	}
	err := s.file.walk(leaseBucket, func(key, value []byte) error {
		id, ttl, err := parseLease(key, value)
		s.leases[id] = ttl
		return err
	})
	if err == nil {
		err = s.file.walk(metaBucket, s.readMeta)
	}
	if err == nil {
		err = s.file.walk(keyBucket, s.readHistory)
	}
	if err != nil {
		return err
	}
	s.Info.Keys = int64(len(s.latest))
	for _, v := range s.latest {
		if _, ok := s.leases[v.lease]; v.lease != 0 && !ok {
			s.Info.LostLeases++
		}
	}
	return s.readNote()
}

// readMeta takes a compact revision into account: it may be newer than all
// keys.
func (s *Snapshot) readMeta(key, value []byte) error {
	if name := string(key); name != finishedCompact && name != scheduledCompact {
		return nil
	}
	at, err := parseRevision(value)
	s.Info.Revision = max(s.Info.Revision, at.main)
	return err
}

// readHistory notes the newest version of each key, in the order of
// revisions.
func (s *Snapshot) readHistory(key, value []byte) error {
	at, kv, err := parseChange(key, value)
	if err != nil {
		return err
	}
	s.Info.Revision = max(s.Info.Revision, at.main)
	name := string(kv.Key)
	switch {
	case name == "": // The mark of `etcdutl snapshot restore --bump-revision`.
	case at.deleted:
		delete(s.latest, name)
	default:
		s.latest[name] = version{at, kv.Lease}
	}
	return nil
}

func parseChange(key, value []byte) (etcdRevision, mvccpb.KeyValue, error) {
	var kv mvccpb.KeyValue
	at, err := parseRevision(key)
	if err != nil {
		return at, kv, err
	}
	if err := kv.Unmarshal(value); err != nil {
		return at, kv, fmt.Errorf("revision %d: %w", at.main, err)
	}
	if !at.deleted && len(kv.Key) > 0 && (kv.ModRevision != at.main || kv.CreateRevision <= 0 || kv.CreateRevision > at.main || kv.Version <= 0) {
		return at, kv, fmt.Errorf("revision %d: key %q says that it was created at revision %d, changed at %d and has version %d",
			at.main, kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version)
	}
	return at, kv, nil
}

// readNote compares a snapshot of ours with what it says of itself. An etcd
// that was restored from one carries the note on, into snapshots of its own at
// later revisions: of those it says nothing.
func (s *Snapshot) readNote() error {
	return s.file.walk(noteBucket, func(key, value []byte) error {
		if string(key) != noteKey {
			return nil
		}
		n, err := parseNote(value)
		if err != nil {
			return err
		}
		if n.Revision < s.Info.Revision {
			return nil
		}
		if n.Keys != s.Info.Keys || n.Revision != s.Info.Revision {
			return fmt.Errorf("%d keys at revision %d; it says %d at %d", s.Info.Keys, s.Info.Revision, n.Keys, n.Revision)
		}
		s.Info.Time = n.Time.UTC()
		return nil
	})
}

// Rows returns the live keys in the order of their revisions, with leases as
// seconds to live. Keys that one transaction of an etcd wrote have the same
// mod revision.
func (s *Snapshot) Rows() iter.Seq2[*server.KeyValue, error] {
	return func(yield func(*server.KeyValue, error) bool) {
		err := s.file.walk(keyBucket, func(key, value []byte) error {
			at, kv, err := parseChange(key, value)
			if err != nil {
				return err
			}
			if len(kv.Key) == 0 || at.deleted || s.latest[string(kv.Key)].at != at {
				return nil
			}
			if !yield(s.row(&kv), nil) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

var errStop = errors.New("no more rows are wanted")

func (s *Snapshot) row(kv *mvccpb.KeyValue) *server.KeyValue {
	return &server.KeyValue{
		Key: string(kv.Key), Value: kv.Value, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
		Version: kv.Version, Lease: s.leases[kv.Lease],
	}
}
