package damage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// entry is one entry of a batch that a test writes.
type entry struct {
	term uint64
	kind byte
	size int
}

// encode appends a batch as dqlite does. The data are bytes that are not 0.
func encode(buf []byte, entries ...entry) []byte {
	header := binary.LittleEndian.AppendUint64(nil, uint64(len(entries)))
	var data []byte
	for _, e := range entries {
		header = binary.LittleEndian.AppendUint64(header, e.term)
		header = append(header, e.kind, 0, 0, 0)
		header = binary.LittleEndian.AppendUint32(header, uint32(e.size))
		for i := range e.size {
			data = append(data, byte(i%255+1))
		}
	}
	buf = binary.LittleEndian.AppendUint32(buf, checksum(header))
	buf = binary.LittleEndian.AppendUint32(buf, checksum(data))
	return append(append(buf, header...), data...)
}

func format() []byte { return binary.LittleEndian.AppendUint64(nil, diskFormat) }

// commands is a segment of n batches with a command of 2 KiB each.
func commands(n int, term uint64) []byte {
	buf := format()
	for range n {
		buf = encode(buf, entry{term, entryCommand, 2048})
	}
	return buf
}

// padded is an open segment.
func padded(buf []byte) []byte { return append(buf, make([]byte, segmentSize-len(buf))...) }

func meta(version, term, vote uint64) []byte {
	var b []byte
	for _, v := range []uint64{diskFormat, version, term, vote} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func snapshotMeta(config []byte) []byte {
	tail := binary.LittleEndian.AppendUint64(nil, 1)
	tail = binary.LittleEndian.AppendUint64(tail, uint64(len(config)))
	tail = append(tail, config...)
	b := format()
	b = binary.LittleEndian.AppendUint64(b, uint64(checksum(tail)))
	return append(b, tail...)
}

func frame(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	if err := w.Apply(lz4.SizeOption(uint64(len(content))), lz4.ChecksumOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	identity1 = `{"id": 3, "address": "member-0000000000000003"}`
	closed1   = "0000000000000001-0000000000000001"
	closed4   = "0000000000000001-0000000000000004"
)

// config is the first entry of a log.
func config() []byte { return encode(format(), entry{1, entryChange, 40}) }

// base is a directory in good order: entry 1 closed, the others open.
func base(files map[string][]byte) map[string][]byte {
	all := map[string][]byte{
		identityFile: []byte(identity1), "metadata1": meta(3, 2, 3), "metadata2": meta(2, 2, 0),
		closed1: config(), "open-1": padded(commands(3, 2)), "open-2": padded(nil), lockFile: nil,
	}
	for name, data := range files {
		if data == nil {
			delete(all, name)
		} else {
			all[name] = data
		}
	}
	return all
}

func inspect(t *testing.T, files map[string][]byte) Report {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// change returns data with other bytes at offset at.
func change(data []byte, at int, to ...byte) []byte {
	data = bytes.Clone(data)
	copy(data[at:], to)
	return data
}

// TestInspect has the states that real directories of the agreement test do
// not come to, and says which finding is wanted.
func TestInspect(t *testing.T) {
	three := commands(3, 2)
	second := (len(three)-formatSize)/3 + formatSize
	third := 2*second - formatSize
	missing := make([]byte, sector)
	snap := frame(t, bytes.Repeat([]byte("state"), 1000))
	// The command's header is whole and its last sector missing; a barrier of
	// the same write is there.
	multi := encode(encode(commands(3, 2), entry{2, entryCommand, 4096}), entry{2, entryBarrier, 8})
	multi = change(multi, (len(multi)-1024)/sector*sector, missing...)

	for _, c := range []struct {
		name     string
		files    map[string][]byte
		severity Severity
		kind     Kind
		file     string
		text     string
	}{
		{"in order", nil, Harmless, "", "", ""},
		{"last write unfinished", map[string][]byte{"open-1": padded(change(three, (third+1024)/sector*sector, missing...))}, Harmless, TornTail, "open-1", "drops it"},
		{"first sector of the last write missing", map[string][]byte{"open-1": padded(change(three, third, make([]byte, sector-third%sector)...))}, Harmless, TornTail, "open-1", "drops it"},
		{"write before the last one cleared", map[string][]byte{"open-1": padded(change(three, (second+1024)/sector*sector, missing...))}, Damaged, Lost, "open-1", "later entries"},
		{"last write garbled", map[string][]byte{"open-1": padded(change(three, third+100, 7, 7, 7, 7))}, Damaged, Lost, "open-1", "unwritten"},
		{"last write's header garbled", map[string][]byte{"open-1": padded(change(three, third+20, 7, 7, 7, 7))}, Damaged, Lost, "open-1", "unwritten"},
		{"unfinished write with a barrier behind the command", map[string][]byte{"open-1": padded(multi)}, Harmless, TornTail, "open-1", "drops it"},
		{"first write of a segment without its begin", map[string][]byte{"open-1": padded(change(commands(1, 2), 0, missing...))}, Repairable, TornTail, "open-1", "first write"},
		{"begin of a segment with stored entries", map[string][]byte{"open-1": padded(change(three, 0, missing...))}, Damaged, Segment, "open-1", "format is 0"},
		{"unfinished write, then another segment", map[string][]byte{"open-1": padded(change(three, (third+1024)/sector*sector, missing...)), "open-2": padded(commands(1, 2))}, Damaged, Lost, "open-1", "open-2 was written after it"},
		{"open segment left out", map[string][]byte{"open-2": nil, "open-3": padded(commands(1, 2))}, Harmless, "", "", ""},
		{"open segment cut off", map[string][]byte{"open-1": {}, "open-3": padded(nil)}, Damaged, Lost, "open-1", "cut off"},
		{"sizes of prepared segments lost", map[string][]byte{"open-2": {}, "open-3": {}}, Harmless, "", "", ""},
		{"open segment empty", map[string][]byte{"open-1": padded(nil), "open-2": padded(commands(1, 2))}, Damaged, Lost, "open-1", "empty"},
		{"open segment cut to size", map[string][]byte{"open-1": three}, Harmless, "", "", ""},
		{"open segment full but for 8 bytes", map[string][]byte{"open-1": append(encode(format(), entry{2, entryCommand, segmentSize - 8 - formatSize - 32}), make([]byte, 8)...), "open-2": padded(nil)}, Repairable, TornTail, "open-1", "full"},
		{"terms decrease", map[string][]byte{"open-2": padded(commands(1, 1))}, Damaged, Gap, "open-2", "decrease"},
		{"term behind the entries", map[string][]byte{"open-2": padded(commands(1, 5))}, Damaged, Metadata, "metadata1", "gone back"},
		{"no first entry", map[string][]byte{closed1: nil}, Damaged, Gap, "open-1", "missing before it"},
		{"closed segment missing", map[string][]byte{"0000000000000003-0000000000000004": commands(2, 2)}, Damaged, Gap, "0000000000000003-0000000000000004", "entries 2 to 2"},
		{"closed segment with too few entries", map[string][]byte{"0000000000000002-0000000000000004": commands(2, 2)}, Damaged, Segment, "0000000000000002-0000000000000004", "2 entries instead of 3"},
		{"truncation unfinished", map[string][]byte{"0000000000000002-0000000000000004": commands(3, 2), "0000000000000002-0000000000000003": commands(2, 2)}, Repairable, Unfinished, "0000000000000002-0000000000000003", "copy"},
		{"closed segments overlap", map[string][]byte{"0000000000000002-0000000000000004": commands(3, 2), "0000000000000003-0000000000000005": commands(3, 2)}, Damaged, Gap, "0000000000000003-0000000000000005", "also in"},
		{"snapshot", map[string][]byte{"snapshot-2-4-9": snap, "snapshot-2-4-9.meta": snapshotMeta([]byte("config")), "0000000000000002-0000000000000004": commands(3, 2)}, Harmless, "", "", ""},
		{"snapshot of another term than its entry", map[string][]byte{"snapshot-1-4-9": snap, "snapshot-1-4-9.meta": snapshotMeta([]byte("config")), "0000000000000002-0000000000000004": commands(3, 2)}, Damaged, Gap, "0000000000000002-0000000000000004", "wrong place"},
		{"snapshot ahead of the log", map[string][]byte{"snapshot-2-9-9": snap, "snapshot-2-9-9.meta": snapshotMeta([]byte("config"))}, Damaged, Gap, closed1, "no closed segment follows"},
		{"snapshot garbled", map[string][]byte{"snapshot-2-4-9": change(snap, 30, 1, 2, 3), "snapshot-2-4-9.meta": snapshotMeta([]byte("config")), "0000000000000002-0000000000000004": commands(3, 2)}, Damaged, Snapshot, "snapshot-2-4-9", ""},
		{"snapshot without meta", map[string][]byte{"snapshot-2-4-9": snap}, Harmless, Unneeded, "snapshot-2-4-9", "removes it"},
		{"old snapshot garbled", map[string][]byte{
			"snapshot-1-3-9": change(snap, 30, 1, 2, 3), "snapshot-1-3-9.meta": snapshotMeta([]byte("config")),
			"snapshot-2-4-9": snap, "snapshot-2-4-9.meta": snapshotMeta([]byte("config")), "0000000000000002-0000000000000004": commands(3, 2),
		}, Harmless, Snapshot, "snapshot-1-3-9", "not needed"},
		{"metadata missing", map[string][]byte{"metadata1": nil, "metadata2": nil}, Damaged, Metadata, "metadata1", "vote twice"},
		{"older metadata missing", map[string][]byte{"metadata2": nil}, Damaged, Metadata, "metadata2", "vote twice"},
		{"newer metadata short", map[string][]byte{"metadata1": meta(3, 2, 3)[:31]}, Damaged, Metadata, "metadata1", "vote twice"},
		{"metadata in the other's file", map[string][]byte{"metadata1": meta(4, 2, 3)}, Damaged, Metadata, "metadata1", "belong"},
		{"vote taken back", map[string][]byte{"metadata1": meta(3, 2, 0)}, Damaged, Metadata, "metadata1", "takes back"},
		{"term taken back", map[string][]byte{"metadata1": meta(3, 1, 3)}, Damaged, Metadata, "metadata1", "follows term"},
		{"versions apart", map[string][]byte{"metadata1": meta(7, 2, 3)}, Damaged, Metadata, "metadata1", "do not follow"},
		{"identity missing", map[string][]byte{identityFile: nil}, Damaged, Identity, identityFile, "missing"},
		{"identity of another", map[string][]byte{identityFile: []byte(`{"id": 4, "address": "member-0000000000000003"}`)}, Damaged, Identity, identityFile, "belongs to"},
		{"behind the mark", map[string][]byte{markFile: []byte(`{"index":9,"term":2,"checksum":` + "0}")}, Harmless, Unneeded, markFile, "not readable"},
		{"file with a long name", map[string][]byte{strings.Repeat("x", 128): {1}}, Damaged, Unknown, strings.Repeat("x", 128), "aborts"},
		{"file that looks like a segment", map[string][]byte{"1-2": {1}}, Damaged, Unknown, "1-2", "part of the log"},
		{"file of somebody else", map[string][]byte{"notes": {1}}, Harmless, Unknown, "notes", "ignores"},
		{"leftover", map[string][]byte{"tmp-snapshot-1": {1}}, Harmless, Unneeded, "tmp-snapshot-1", "removes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := inspect(t, base(c.files))
			if r.Severity() != c.severity {
				t.Fatalf("severity %v; want %v\n%s", r.Severity(), c.severity, r)
			}
			if c.kind == "" {
				if len(r.Findings) != 0 {
					t.Errorf("findings in a directory in good order:\n%s", r)
				}
				return
			}
			for _, f := range r.Findings {
				if f.Severity == c.severity && f.Kind == c.kind && f.File == c.file && strings.Contains(f.Text, c.text) {
					return
				}
			}
			t.Errorf("no finding %q in %s that says %q:\n%s", c.kind, c.file, c.text, r)
		})
	}
}

// TestRepair mends what it may, after which nothing is left to mend.
func TestRepair(t *testing.T) {
	for name, files := range map[string]map[string][]byte{
		"first write":  base(map[string][]byte{"open-1": padded(change(commands(1, 2), 0, make([]byte, sector)...))}),
		"full segment": base(map[string][]byte{"open-1": append(encode(format(), entry{2, entryCommand, segmentSize - 8 - formatSize - 32}), make([]byte, 8)...)}),
		"truncation":   base(map[string][]byte{"0000000000000002-0000000000000004": commands(3, 2), "0000000000000002-0000000000000003": commands(2, 2)}),
	} {
		t.Run(name, func(t *testing.T) {
			r := inspect(t, files)
			if r.Severity() != Repairable {
				t.Fatalf("severity %v; want repairable\n%s", r.Severity(), r)
			}
			if err := Repair(r); err != nil {
				t.Fatal(err)
			}
			after, err := Inspect(r.Dir)
			if err != nil || after.Severity() != Harmless {
				t.Errorf("after the repair: %v\n%s", err, after)
			}
			if after.LastIndex != r.LastIndex {
				t.Errorf("the repair changed the last entry from %d to %d", r.LastIndex, after.LastIndex)
			}
		})
	}
	if r := inspect(t, base(map[string][]byte{"metadata2": nil})); Repair(r) == nil {
		t.Error("Repair of a damaged directory reports no error")
	}
}

func TestIsFull(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("leader exec failed"), false},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, true},
		{errors.New("raft_init(): io: create I/O capabilities probe file: not enough space to allocate 4096 bytes"), true},
	} {
		if got := IsFull(c.err); got != c.want {
			t.Errorf("IsFull(%v) = %v; want %v", c.err, got, c.want)
		}
	}
}

func TestMissingAndFresh(t *testing.T) {
	r, err := Inspect(filepath.Join(t.TempDir(), "none"))
	if err != nil || !r.Empty || r.Severity() != Harmless {
		t.Errorf("a directory that is not there: %v, %v; want empty", r, err)
	}
	if r := inspect(t, map[string][]byte{identityFile: []byte(identity1)}); !r.Empty || len(r.Findings) > 0 {
		t.Errorf("a fresh directory: %v; want empty and in order", r)
	}
}

func TestFounding(t *testing.T) {
	founder := fmt.Appendf(nil, `{"id": %d, "address": "member-%016x"}`, uint64(bootstrapID), uint64(bootstrapID))
	for _, c := range []struct {
		name     string
		files    map[string][]byte
		severity Severity
	}{
		{"unfinished", map[string][]byte{identityFile: founder, "metadata1": meta(1, 1, 0), bootstrapFile: nil}, Harmless},
		{"finished, and the log gone", map[string][]byte{identityFile: founder, "metadata1": meta(1, 1, 0)}, Damaged},
		{"of another", map[string][]byte{identityFile: []byte(identity1), "metadata1": meta(1, 1, 0)}, Harmless},
	} {
		if r := inspect(t, c.files); r.Severity() != c.severity || !r.Empty {
			t.Errorf("%s: %v; want %v and empty", c.name, r, c.severity)
		}
	}
}

// TestUnreadable has a directory and a file that cannot be opened, in ways
// that stop root too.
func TestUnreadable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "member")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Inspect(file); err != nil || r.Reason() != Unreadable || r.Findings[0].File != "." {
		t.Errorf("a file in place of the directory: %v, %v; want %s", r, err, Unreadable)
	}
	dir := inspect(t, base(nil)).Dir
	for _, name := range []string{"open-1", "metadata2", closed1, identityFile, lockFile} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, ".away")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Inspect(dir)
		if err != nil || r.Reason() != Unreadable || !strings.Contains(r.Err().Error(), name) {
			t.Errorf("%s cannot be read: %v, %v; want %s", name, r, err, Unreadable)
		}
		if err := os.Rename(filepath.Join(dir, ".away"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		return // Permissions do not stop root.
	}
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	if r, err := Inspect(dir); err != nil || r.Reason() != Unreadable {
		t.Errorf("a directory of mode 000: %v, %v; want %s", r, err, Unreadable)
	}
}

// TestRunning refuses to read what a member is writing.
func TestRunning(t *testing.T) {
	dir := inspect(t, base(nil)).Dir
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("Inspect of a locked directory: %v; want ErrRunning", err)
	}
}

func TestMark(t *testing.T) {
	r := inspect(t, base(map[string][]byte{"0000000000000002-0000000000000004": commands(3, 2)}))
	if err := UpdateMark(r.Dir); err != nil {
		t.Fatal(err)
	}
	m, err := ReadMark(r.Dir)
	if err != nil || m.Index != 4 || m.Term != 2 {
		t.Fatalf("mark = %+v, %v; want entry 4 of term 2", m, err)
	}
	if r, err := Inspect(r.Dir); err != nil || len(r.Findings) > 0 {
		t.Errorf("a directory at its mark: %v, %v; want no findings", r, err)
	}
	// dqlite would load open-1 as entries 2 to 4 and not notice.
	if err := os.Remove(filepath.Join(r.Dir, "0000000000000002-0000000000000004")); err != nil {
		t.Fatal(err)
	}
	if r, err := Inspect(r.Dir); err != nil || r.Reason() != BehindMark {
		t.Errorf("a directory behind its mark: %v, %v; want %s", r, err, BehindMark)
	}
}

// TestChecksum compares with the bit by bit definition.
func TestChecksum(t *testing.T) {
	data := []byte("123456789, and some more for the tables")
	for n := range data {
		var want uint32
		for _, b := range data[:n] {
			want ^= uint32(b) << 24
			for range 8 {
				carry := want>>31 != 0
				want <<= 1
				if carry {
					want ^= polynomial
				}
			}
		}
		if got := checksum(data[:n]); got != want {
			t.Errorf("checksum(%q) = %08x; want %08x", data[:n], got, want)
		}
	}
}

func TestOneBit(t *testing.T) {
	data := commands(1, 2)
	sum := checksum(data)
	for bit := 0; bit < 8*len(data); bit += 37 {
		data[bit/8] ^= 1 << (bit % 8)
		if !oneBit(sum^checksum(data), len(data)) {
			t.Errorf("the flip of bit %d is not recognised", bit)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	clear(data[512:1024])
	if oneBit(sum^checksum(data), len(data)) {
		t.Error("a cleared sector is taken for a flipped bit")
	}
}
