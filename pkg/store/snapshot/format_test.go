package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/bbolt"
)

var sampleTime = time.Date(2026, 11, 21, 12, 30, 0, 0, time.UTC)

// list is a Source in memory.
type list struct {
	revision int64
	rows     []*server.KeyValue
	// fail is what the first calls return at their end.
	fail []error
}

func (l *list) Scan(_ context.Context, fn func(*server.KeyValue) error) (int64, error) {
	for _, kv := range l.rows {
		if err := fn(kv); err != nil {
			return 0, err
		}
	}
	if len(l.fail) > 0 {
		err := l.fail[0]
		l.fail = l.fail[1:]
		return 0, err
	}
	return l.revision, nil
}

// sample returns n keys with all there is: values of 0 bytes to some pages,
// leases, versions, keys that are no text, gaps between revisions.
func sample(n int) *list {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	l := &list{revision: 1}
	for i := range n {
		l.revision += 1 + random.Int64N(3)
		kv := &server.KeyValue{
			Key: fmt.Sprintf("/registry/pods/ns-%d/pod-%d", i%7, i), ModRevision: l.revision,
			CreateRevision: 1 + random.Int64N(l.revision), Version: 1 + random.Int64N(100),
			Value: make([]byte, random.IntN(5000)),
		}
		switch i % 10 {
		case 1:
			kv.Lease = 3600 + int64(i%30)
		case 2:
			kv.Key += "\x00\xff"
		case 3:
			kv.Value = []byte{}
		case 4:
			kv.Value = make([]byte, 60_000)
		}
		for j := range kv.Value {
			kv.Value[j] = byte(random.Uint32())
		}
		l.rows = append(l.rows, kv)
	}
	l.revision += 5
	return l
}

// describe returns a line for each row, which is quickly compared.
func describe(kvs []*server.KeyValue) []string {
	var all []string
	for _, kv := range kvs {
		all = append(all, fmt.Sprintf("%q created %d changed %d version %d lease %d value %d %x",
			kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, len(kv.Value), sha256.Sum256(kv.Value)))
	}
	return all
}

func rows(t *testing.T, path string) []*server.KeyValue {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all []*server.KeyValue
	for kv, err := range s.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, kv)
	}
	return all
}

// TestFormat writes snapshots of all sizes that matter to the tree and holds
// them against bbolt itself and against what went in.
func TestFormat(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 10, 100, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.db")
			source := sample(n)
			info, err := Write(t.Context(), path, source)
			if err != nil {
				t.Fatal(err)
			}
			if info.Revision != source.revision || info.Keys != int64(n) || info.LostLeases != 0 {
				t.Errorf("written %+v; want %d keys at %d", info, n, source.revision)
			}
			again, err := Verify(path)
			if diff := cmp.Diff(info, again); diff != "" || err != nil {
				t.Errorf("Verify: %v, %s", err, diff)
			}
			if diff := cmp.Diff(describe(source.rows), describe(rows(t, path))); diff != "" {
				t.Error(diff)
			}
			checkByBolt(t, path, n)
		})
	}
}

// checkByBolt runs bbolt's own check and counts, on the file as it is and
// after bbolt has written to it.
func checkByBolt(t *testing.T, path string, want int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(copied, data[:len(data)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(copied, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	check := func(want int) {
		t.Helper()
		err := db.View(func(tx *bbolt.Tx) error {
			for err := range tx.Check() {
				t.Errorf("bbolt: %v", err)
			}
			got := 0
			err := tx.Bucket([]byte(keyBucket)).ForEach(func(k, v []byte) error { got++; return nil })
			if got != want {
				t.Errorf("bbolt counts %d keys; want %d", got, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	check(want)
	// As a compaction does.
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(keyBucket))
		c := b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return b.Put([]byte("x"), make([]byte, 100_000))
	})
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(keyBucket)).ForEach(func(k, v []byte) error { got++; return nil })
	}); err != nil {
		t.Fatal(err)
	}
	check(got)
}

// TestReadsBolt reads what bbolt wrote: inline buckets, pages of other sizes,
// half-filled nodes, a file with free pages.
func TestReadsBolt(t *testing.T) {
	for _, size := range []int{512, 4096, 16384, 65536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bolt.db")
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: size})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for round := range 3 {
				err := db.Update(func(tx *bbolt.Tx) error {
					b, err := tx.CreateBucketIfNotExists([]byte("key"))
					if err != nil {
						return err
					}
					for i := range 2000 {
						k, v := fmt.Sprintf("%05d", i*7919%2000), strings.Repeat("v", (i*31+round)%900)
						want[k] = v
						if err := b.Put([]byte(k), []byte(v)); err != nil {
							return err
						}
					}
					small, err := tx.CreateBucketIfNotExists([]byte("small"))
					if err != nil {
						return err
					}
					return small.Put([]byte("a"), []byte("b"))
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := openFile(bytes.NewReader(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			if err := f.walk("key", func(k, v []byte) error { got[string(k)] = string(v); return nil }); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			n := 0
			if err := f.walk("small", func(k, v []byte) error { n++; return nil }); err != nil || n != 1 {
				t.Errorf("inline bucket: %d keys, %v; want 1", n, err)
			}
		})
	}
}

// TestDamage gives each way in which a file can be wrong its exact words.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.db")
	if _, err := Write(t.Context(), path, sample(200)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	content := good[:len(good)-sha256.Size]
	foreign := filepath.Join(dir, "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		is   error
		want string
	}{
		{"empty", nil, nil, "empty"},
		{"cut", good[:len(good)/2+7], ErrNoHash, "cut off"},
		{"cut at a page and a hash", good[:8192+32], ErrWrongHash, "damaged"},
		{"hash missing", content, ErrNoHash, "no SHA-256"},
		{"hash wrong", flip(len(good) - 1), ErrWrongHash, "does not match"},
		{"bit in the middle", flip(len(good) / 2), ErrWrongHash, "does not match"},
		{"bit in the first page", flip(20), ErrWrongHash, "does not match"},
		{"zeros", make([]byte, 8192+32), ErrWrongHash, "damaged"},
		{"text", []byte("apiVersion: v1\n"), ErrNoHash, "not a snapshot"},
		{"other content with a hash", signed(bytes.Repeat([]byte("x"), 8192)), nil, "no bbolt database"},
		{"other database", signed(other), nil, `without the bucket "key"`},
		{"fewer pages than it says", signed(content[:len(content)-pageSize]), nil, "pages of 4096 bytes in a file of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.db")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			info, err := Verify(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Verify = %+v, %v; want an error with %q and the path", info, err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Verify: %v; want it to be %v", err, c.is)
			}
		})
	}
	if _, err := Verify(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Verify of a missing file: %v; want ErrNotExist", err)
	}
}

func signed(content []byte) []byte {
	sum := sha256.Sum256(content)
	return append(bytes.Clone(content), sum[:]...)
}

// TestDamagedTree changes pages of a file whose hash is right.
func TestDamagedTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	if _, err := Write(t.Context(), path, sample(3000)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good = good[:len(good)-sha256.Size]
	branch := 0 // offset of a branch page
	for at := 3 * pageSize; at < len(good); at += pageSize {
		if h := parseHeader(good[at:]); h.id == uint64(at/pageSize) && h.flags == branchPage {
			branch = at
			break
		}
	}
	if branch == 0 {
		t.Fatal("no branch page in 3,000 keys")
	}
	child := branch + headerSize + 8
	first := binary.LittleEndian.Uint64(good[child:])
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"child is the page itself", func(b []byte) { binary.LittleEndian.PutUint64(b[child:], uint64(branch/pageSize)) }, "two trees"},
		{"child twice", func(b []byte) { binary.LittleEndian.PutUint64(b[child+elementSize:], first) }, "two trees"},
		{"child beyond the end", func(b []byte) { binary.LittleEndian.PutUint64(b[child:], 1<<40) }, "out of the file's"},
		{"child is metadata", func(b []byte) { binary.LittleEndian.PutUint64(b[child:], 1) }, "out of the file's"},
		{"key beyond the page", func(b []byte) { binary.LittleEndian.PutUint32(b[branch+headerSize:], 1<<31) }, "reaches to byte"},
		{"key without length", func(b []byte) { binary.LittleEndian.PutUint32(b[branch+headerSize+4:], 0) }, "has no key"},
		{"overflow beyond the end", func(b []byte) { binary.LittleEndian.PutUint32(b[branch+12:], 1<<31) }, "pages follow it"},
		{"other page's number", func(b []byte) { b[branch]++ }, "says that it is page"},
		{"another type", func(b []byte) { b[branch+8] = freelistPage }, "want a leaf or a branch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.change(b)
			b = signed(b)
			if _, err := open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("open: %v; want an error with %q", err, c.want)
			}
		})
	}
}

// TestReadError reports a sector that the disk does not give.
func TestReadError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	info, err := Write(t.Context(), path, sample(100))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("input/output error")
	if _, err := open(&badDisk{bytes.NewReader(data), info.Size / 2, boom}, info.Size); !errors.Is(err, boom) {
		t.Errorf("open: %v; want the disk's error", err)
	}
}

type badDisk struct {
	io.ReaderAt
	from int64
	err  error
}

func (d *badDisk) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > d.from {
		return 0, d.err
	}
	return d.ReaderAt.ReadAt(p, at)
}

// mutate changes a few bytes of a database, gives it a right hash and right
// metadata, and reads it: an error or rows, and an end.
func mutate(t *testing.T, data []byte, change func(data []byte)) error {
	t.Helper()
	data = bytes.Clone(data[:len(data)/minPageSize*minPageSize])
	change(data)
	if len(data) >= headerSize+metaSize {
		sum := checksum(data[headerSize : headerSize+metaSize-8])
		binary.LittleEndian.PutUint64(data[headerSize+metaSize-8:], sum)
	}
	data = signed(data)
	s, err := open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	n := int64(0)
	for kv, err := range s.Rows() {
		if err != nil {
			t.Fatalf("row of a snapshot that was verified: %v", err)
		}
		if kv.Key == "" || kv.ModRevision > s.Info.Revision {
			t.Fatalf("row %+v of a snapshot at %d", kv, s.Info.Revision)
		}
		n++
	}
	if n != s.Info.Keys {
		t.Fatalf("%d rows; verified were %d", n, s.Info.Keys)
	}
	return nil
}

// database returns a snapshot of n keys without its hash.
func database(t testing.TB, n int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.db")
	if _, err := Write(t.Context(), path, sample(n)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data[:len(data)-sha256.Size]
}

// TestMutations is the fuzz target's short run: bytes anywhere, and in the
// first part of pages, where the structure is.
func TestMutations(t *testing.T) {
	data := database(t, 40)
	refused := 0
	for seed := range uint64(1000) {
		random := rand.New(rand.NewPCG(seed, 1))
		err := mutate(t, data, func(b []byte) {
			for range random.IntN(4) {
				b[random.IntN(len(b))] ^= byte(random.Uint32())
			}
			for range random.IntN(4) {
				b[random.IntN(len(b)/pageSize)*pageSize+random.IntN(64)] = byte(random.Uint32())
			}
		})
		if err != nil {
			refused++
		}
	}
	t.Logf("%d of 1000 refused", refused)
	if refused < 100 {
		t.Errorf("%d of 1000 refused; want far more", refused)
	}
}

// FuzzOpen wants -fuzzminimizetime 1x: inputs are 60 KB, and making them small
// would take all the time.
func FuzzOpen(f *testing.F) {
	for _, n := range []int{0, 1, 4} {
		data := database(f, n)
		f.Add(data, uint32(pageSize*3+8), byte(1))
		f.Add(data, uint32(len(data)-pageSize), byte(255))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint32, value byte) {
		if len(data) < minPageSize {
			return
		}
		_ = mutate(t, data, func(b []byte) { b[int(at)%len(b)] ^= value })
	})
}
