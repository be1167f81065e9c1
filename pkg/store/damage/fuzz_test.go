package damage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzSegment reads anything as a segment: nothing panics, a closed segment
// without findings is whole, and what is read twice is judged the same.
func FuzzSegment(f *testing.F) {
	f.Add(commands(3, 2))
	f.Add(append(commands(2, 2), make([]byte, 4096)...))
	f.Add(change(commands(3, 2), 600, make([]byte, 512)...))
	f.Add(change(commands(1, 2), 16, 255, 255, 3))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		closed := segment{name: "x", first: 1, last: 3}
		if found := closed.readClosed(data); len(found) == 0 && (closed.entries != 3 || closed.end != len(data)) {
			t.Errorf("a closed segment of %d entries up to byte %d of %d passes", closed.entries, closed.end, len(data))
		}
		var a, b segment
		one, two := a.readOpen(data), b.readOpen(bytes.Clone(data))
		if len(one) != len(two) || a.end > max(len(data), formatSize) {
			t.Errorf("open segment: %v, then %v; ends at %d of %d", one, two, a.end, len(data))
		}
	})
}

// FuzzMetadata parses anything; what passes has a version of its file.
func FuzzMetadata(f *testing.F) {
	f.Add(meta(1, 1, 0), meta(2, 1, 7))
	f.Add(meta(3, 9, 0), []byte{})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		a, err1 := parseMetadata(0, one)
		b, err2 := parseMetadata(1, two)
		if err1 != nil || err2 != nil {
			return
		}
		if file, text := checkMetadata([2]metadata{a, b}, true); (file == "") != (text == "") {
			t.Errorf("checkMetadata(%v, %v) = %q, %q", a, b, file, text)
		} else if text == "" && a.absent() {
			t.Errorf("metadata1 is absent and nothing is said: %v", b)
		}
	})
}

// FuzzSnapshot checks anything as the two files of a snapshot.
func FuzzSnapshot(f *testing.F) {
	f.Add(snapshotMeta([]byte("config")), []byte{4, 0x22, 0x4d, 0x18, 0x6c, 0x40})
	f.Fuzz(func(t *testing.T, m, data []byte) {
		if checkMeta(m) == nil && len(m) <= metaHeader {
			t.Errorf("a meta file of %d bytes passes", len(m))
		}
		if checkFrame(bytes.NewReader(data)) == nil && len(data) < 19 {
			t.Errorf("a frame of %d bytes passes", len(data))
		}
	})
}

// FuzzName reads a directory with a file of any name and content.
func FuzzName(f *testing.F) {
	for _, name := range []string{"open-1", "open-01", "open- 1", closed4, "snapshot-1-2-3", "snapshot-1-2-3.meta", "mark.json", "identity.json", "1-1", "metadata1"} {
		f.Add(name, commands(1, 1))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if filepath.Dir(path) != dir || os.WriteFile(path, data, 0o600) != nil {
			t.Skip("no file name")
		}
		if _, err := Inspect(dir); err != nil {
			t.Error(err)
		}
	})
}
