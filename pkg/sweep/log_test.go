package sweep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestQEMULog reads what qemu-io 7.2 wrote through blklogwrites, for
//
//	write -P 0x11 0 512; write -P 0x22 4096 1024; flush; write -f -P 0x33 8192 512;
//	write -z 16384 1024; discard 32768 4096; write -P 0x44 512 512; flush; write -P 0x55 1024 512
//
// A flush of the guest is logged twice. A write with FUA is logged without a
// flag and with a flush, which QEMU leaves away right after another flush: here
// the one after the write to 8192.
func TestQEMULog(t *testing.T) {
	log, err := os.ReadFile("testdata/qemu-7.2.log")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadLog(bytes.NewReader(log), int64(len(log)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	flush := func(end int64) Entry { return Entry{Flags: Flush, End: end} }
	want := []Entry{
		{Sector: 0, Count: 1, Data: 1024, End: 1536},
		{Sector: 8, Count: 2, Data: 2048, End: 3072},
		flush(3584), flush(4096),
		{Sector: 16, Count: 1, Data: 4608, End: 5120},
		{Sector: 32, Count: 2, Data: 5632, End: 6656},
		flush(7168),
		{Flags: Discard, Sector: 64, Count: 8, End: 7680},
		{Sector: 1, Count: 1, Data: 8192, End: 8704},
		flush(9216), flush(9728),
		{Sector: 2, Count: 1, Data: 10240, End: 10752},
		flush(11264),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	for i, b := range map[int]byte{0: 0x11, 1: 0x22, 4: 0x33, 5: 0, 8: 0x44, 11: 0x55} {
		if e := got[i]; !bytes.Equal(log[e.Data:e.Data+e.Count*SectorSize], bytes.Repeat([]byte{b}, int(e.Count*SectorSize))) {
			t.Errorf("data of entry %d are not %#x", i, b)
		}
	}
	phases, err := PhasesAt(got, []Moment{{Name: "a", Bytes: 0}, {Name: "b", Bytes: 4096}, {Name: "c", Bytes: int64(len(log))}})
	if diff := cmp.Diff([]Phase{{Name: "a"}, {Name: "b", From: 4}, {Name: "c", From: 13}}, phases); diff != "" || err != nil {
		t.Errorf("phases (-want +got): %v\n%s", err, diff)
	}
	if _, err := PhasesAt(got, []Moment{{Name: "a", Bytes: 2}, {Name: "b", Bytes: 1}}); err == nil {
		t.Error("phases in no order gave no error")
	}
}

func logOf(entries ...Entry) []byte {
	b := appendHead(nil, len(entries))
	for _, e := range entries {
		b = appendEntry(b, e)
		if e.writes() && e.Flags&Discard == 0 {
			b = append(b, make([]byte, e.Count*SectorSize)...)
		}
	}
	return b
}

func TestReadLogRefuses(t *testing.T) {
	good := logOf(Entry{Sector: 1, Count: 2}, Entry{Flags: Flush}, Entry{Flags: Mark, Text: "arm"}, Entry{Flags: Discard, Count: 8})
	if _, err := ReadLog(bytes.NewReader(good), int64(len(good)), 1<<16); err != nil {
		t.Fatal(err)
	}
	at := func(i int, v uint64) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[i:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"magic": at(0, 1), "version": at(8, 2), "many entries": at(16, 1<<60), "one more entry": at(16, 5), "sector size": at(24, 4096),
		"flags": at(512+16, 32), "beyond the disk": at(512, 128), "sectors": at(512+8, 1<<63), "cut": good[:len(good)-1], "head": good[:100],
		"neither": at(2048+16, 0), "mark too long": at(2560+24, 512), "mark with sectors": at(2560+8, 1),
	} {
		if e, err := ReadLog(bytes.NewReader(b), int64(len(b)), 1<<16); !errors.Is(err, ErrLog) {
			t.Errorf("%s: %v, %v; want ErrLog", name, e, err)
		}
	}
	if e, err := ReadLog(bytes.NewReader(nil), 0, 1<<16); err != nil || len(e) != 0 {
		t.Errorf("an empty log: %v, %v", e, err)
	}
}

func FuzzReadLog(f *testing.F) {
	log, err := os.ReadFile("testdata/qemu-7.2.log")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(log)
	f.Add(logOf(Entry{Sector: 1, Count: 2}, Entry{Flags: Flush}, Entry{Flags: Mark, Text: "arm"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		const disk = 64 << 10
		entries, err := ReadLog(bytes.NewReader(b), int64(len(b)), disk)
		if err != nil {
			return
		}
		rec := Recording{Base: bytes.NewReader(make([]byte, disk)), Size: disk, Log: bytes.NewReader(b), Entries: entries, Phases: PhasesOfMarks(entries)}
		if err := rec.check(); err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for _, e := range entries {
			n += e.Count
		}
		if n > 1<<10 {
			return // discards can be large
		}
		e := testEpoch(&rec)
		err = walk(&rec, e, func(int) error {
			_, err := e.key(choice{kind: sample, a: 1})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestRecorder(t *testing.T) {
	dir := t.TempDir()
	image, log := filepath.Join(dir, "disk"), filepath.Join(dir, "log")
	if err := os.WriteFile(image, bytes.Repeat([]byte{1}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "base")
	if err := os.Link(image, base); err != nil {
		t.Fatal(err)
	}
	r, err := NewRecorder(image, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.WriteAt([]byte{2, 2}, 511); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{r.Sync(), r.Phase("next"), r.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	rec, done, err := Open(base, log)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	want := []Entry{{Count: 2, Data: 1024, End: 2048}, {Flags: Flush, End: 2560}, {Flags: Mark, Text: "next", End: 3072}}
	if diff := cmp.Diff(want, rec.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Phase{{Name: "next", From: 2}}, rec.Phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	data := make([]byte, 1024)
	if _, err := rec.Log.ReadAt(data, 1024); err != nil || data[510] != 1 || data[511] != 2 || data[512] != 2 || data[513] != 1 {
		t.Errorf("data % x, %v", data[508:516], err)
	}
}
