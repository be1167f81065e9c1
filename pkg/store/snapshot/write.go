package snapshot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// tempPattern names files that are being written. A power cut leaves
	// them; Clean removes them.
	tempPattern = ".tmp-snapshot-*"
	// attempts is how often a snapshot begins anew because the revision that
	// it shows was compacted meanwhile.
	attempts = 3
)

// Source is where the keys of a snapshot come from.
type Source interface {
	// Scan calls fn for every live key as of one revision, which it returns,
	// in the order of their mod revisions. It returns server.ErrCompacted when
	// that revision is not readable any more.
	Scan(ctx context.Context, fn func(*server.KeyValue) error) (revision int64, err error)
}

// Write makes a snapshot of the source at path. It is written beside, flushed,
// read back from the disk and compared, and only then gets its name: what
// exists under path has been seen to be whole. On an error before that,
// nothing is left behind.
func Write(ctx context.Context, path string, source Source) (Info, error) {
	return write(ctx, steps{}, filepath.Dir(path), func(Info) string { return filepath.Base(path) }, time.Now(), source)
}

// Clean removes what interrupted writes left in dir and tells the files.
func Clean(dir string) ([]string, error) {
	left, err := filepath.Glob(filepath.Join(dir, tempPattern))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return left, err
}

// steps lets the tests look at the disk before each step and fail it; a nil
// hook does neither.
type steps struct {
	before func(step string) error
}

func (s steps) do(step string, f func() error) error {
	if s.before != nil {
		if err := s.before(step); err != nil {
			return err
		}
	}
	return f()
}

// write is Write with a name in dir that may depend on the content.
func write(ctx context.Context, s steps, dir string, name func(Info) string, now time.Time, source Source) (info Info, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write snapshot in %s: %w", dir, err)
		}
	}()
	var f *os.File
	if err := s.do("create", func() (err error) { f, err = os.CreateTemp(dir, tempPattern); return err }); err != nil {
		return Info{}, err
	}
	err = fill(ctx, s, f, now, source)
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.do("verify", func() (err error) { info, err = Verify(f.Name()); return err })
	}
	var path string
	if err == nil {
		path = filepath.Join(dir, name(info))
		err = s.do("rename", func() error { return os.Rename(f.Name(), path) })
	}
	if err != nil {
		return Info{}, errors.Join(err, os.Remove(f.Name()))
	}
	info.Path = path
	if err := s.do("flush directory", func() error { return atomicfile.SyncDir(dir) }); err != nil {
		return info, fmt.Errorf("%w: %w", atomicfile.ErrNotDurable, err)
	}
	return info, nil
}

// fill gives the temporary file f its content, brings it to the disk and
// compares it with what was meant.
func fill(ctx context.Context, s steps, f *os.File, now time.Time, source Source) error {
	var c *content
	err := s.do("write", func() (err error) { c, err = writeContent(ctx, f, now, source); return err })
	if err == nil {
		err = s.do("hash", func() error { return appendHash(f, c.size) })
	}
	if err == nil {
		err = s.do("flush", f.Sync)
	}
	if err != nil {
		return err
	}
	forget(f)
	return s.do("compare", func() error { return c.compare(f) })
}

// forget has the kernel drop what it holds of f in memory, so that what is read
// next comes from the disk. Where the file system cannot, the comparison is of
// less worth and as right.
func forget(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// Copy copies the snapshot at from, ours or an etcd's, to another path, also on
// another file system, with the same care as Write.
func Copy(from, to string) (Info, error) {
	info, err := copyFile(from, to)
	if err != nil {
		return Info{}, fmt.Errorf("copy snapshot %s to %s: %w", from, to, err)
	}
	return info, nil
}

func copyFile(from, to string) (info Info, err error) {
	want, err := Verify(from)
	if err != nil {
		return Info{}, err
	}
	in, err := os.Open(from)
	if err != nil {
		return Info{}, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.CreateTemp(filepath.Dir(to), tempPattern)
	if err != nil {
		return Info{}, err
	}
	if _, err = io.Copy(out, in); err == nil {
		err = out.Sync()
	}
	forget(out)
	if err = errors.Join(err, out.Close()); err == nil {
		info, err = Verify(out.Name())
	}
	if err == nil && info.Hash != want.Hash {
		err = fmt.Errorf("%w: %s, not %s", ErrWrongHash, info.Hash, want.Hash)
	}
	if err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		return Info{}, errors.Join(err, os.Remove(out.Name()))
	}
	info.Path = to
	return info, atomicfile.SyncDir(filepath.Dir(to))
}

// content is what was written, to be compared with what is there.
type content struct {
	size   int64 // without the hash
	keys   int64
	digest hash.Hash32
}

// writeContent writes the database. It begins anew when the revision was
// compacted meanwhile.
func writeContent(ctx context.Context, f *os.File, now time.Time, source Source) (*content, error) {
	for attempt := 1; ; attempt++ {
		c, err := writeOnce(ctx, f, now, source)
		if !errors.Is(err, server.ErrCompacted) || attempt == attempts {
			return c, err
		}
		if err := f.Truncate(0); err != nil {
			return nil, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
}

func writeOnce(ctx context.Context, f *os.File, now time.Time, source Source) (*content, error) {
	pages, err := newPageWriter(f)
	if err != nil {
		return nil, err
	}
	c := &content{digest: newDigest()}
	keys := tree{pages: pages}
	leases := map[int64]bool{}
	revision, err := source.Scan(ctx, func(kv *server.KeyValue) error {
		value, err := marshalKeyValue(kv)
		if err != nil {
			return fmt.Errorf("key %q: %w", kv.Key, err)
		}
		if kv.Lease != 0 {
			leases[kv.Lease] = true
		}
		c.keys++
		at := etcdRevision{main: kv.ModRevision}.append(nil)
		c.digest.Write(at)
		c.digest.Write(value)
		return keys.put(at, value)
	})
	if err != nil {
		return nil, fmt.Errorf("read the store: %w", err)
	}
	buckets := map[string]uint64{}
	if buckets[keyBucket], err = keys.finish(); err != nil {
		return nil, err
	}
	if err := writeSmallBuckets(pages, buckets, leases, note{Time: now.UTC(), Revision: revision, Keys: c.keys}); err != nil {
		return nil, err
	}
	c.size, err = pages.finish(buckets)
	return c, err
}

// writeSmallBuckets writes all buckets beside that of the keys.
func writeSmallBuckets(pages *pageWriter, buckets map[string]uint64, leases map[int64]bool, n note) error {
	description, err := json.Marshal(n)
	if err != nil {
		return err
	}
	content := map[string]map[string][]byte{
		metaBucket: metaValues(n.Revision), leaseBucket: {}, noteBucket: {noteKey: description},
	}
	for ttl := range leases {
		key, value, err := marshalLease(ttl)
		if err != nil {
			return err
		}
		content[leaseBucket][string(key)] = value
	}
	for _, name := range append(slices.Clone(etcdBuckets), noteBucket) {
		if name == keyBucket {
			continue
		}
		t := tree{pages: pages}
		for _, key := range slices.Sorted(maps.Keys(content[name])) {
			if err := t.put([]byte(key), content[name][key]); err != nil {
				return fmt.Errorf("bucket %q: %w", name, err)
			}
		}
		if buckets[name], err = t.finish(); err != nil {
			return err
		}
	}
	return nil
}

func appendHash(f *os.File, size int64) error {
	sum, err := hashOf(f, size)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(sum, size)
	return err
}

// hashOf returns the SHA-256 of the first size bytes.
func hashOf(r io.ReaderAt, size int64) ([]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 256<<10)); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func newDigest() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// compare reads the keys back and returns an error unless they are those that
// were written.
func (c *content) compare(r io.ReaderAt) error {
	f, err := openFile(r, c.size)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	got := content{digest: newDigest()}
	err = f.walk(keyBucket, func(key, value []byte) error {
		got.keys++
		got.digest.Write(key)
		got.digest.Write(value)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if got.keys != c.keys || got.digest.Sum32() != c.digest.Sum32() {
		return fmt.Errorf("read back %d keys with checksum %08x; wrote %d with %08x: the disk does not keep what it is given",
			got.keys, got.digest.Sum32(), c.keys, c.digest.Sum32())
	}
	return nil
}
