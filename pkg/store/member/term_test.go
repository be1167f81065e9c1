package member

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

func encodeMetadata(words ...uint64) []byte {
	var data []byte
	for _, w := range words {
		data = binary.LittleEndian.AppendUint64(data, w)
	}
	return data
}

func TestReadTerm(t *testing.T) {
	const none = "-"
	tests := []struct {
		what     string
		one, two string
		want     uint64
	}{
		{"fresh", none, none, 0},
		{"bootstrapped", string(encodeMetadata(1, 1, 1, 0)), none, 1},
		{"newer second", string(encodeMetadata(1, 7, 4, 0)), string(encodeMetadata(1, 8, 5, 3)), 5},
		{"newer first", string(encodeMetadata(1, 9, 6, 1)), string(encodeMetadata(1, 8, 5, 3)), 6},
		{"vote only", string(encodeMetadata(1, 9, 5, 1)), string(encodeMetadata(1, 8, 5, 0)), 5},
		{"newer one torn", string(encodeMetadata(1, 9, 6, 1)[:20]), string(encodeMetadata(1, 8, 5, 3)), 5},
		// Read between the bytes of a write: version 9 over the term of 7.
		{"newer one half written", string(encodeMetadata(1, 9, 4, 1)), string(encodeMetadata(1, 8, 5, 3)), 5},
		{"empty", "", "", 0},
		{"long", string(encodeMetadata(1, 9, 6, 1, 0)), none, 0},
		{"other format", string(encodeMetadata(2, 9, 6, 1)), none, 0},
		{"no version", string(encodeMetadata(1, 0, 6, 1)), none, 0},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range map[string]string{"metadata1": test.one, "metadata2": test.two} {
				if content == none {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := ReadTerm(dir); got != test.want || err != nil {
				t.Errorf("ReadTerm = %d, %v; want %d", got, err, test.want)
			}
		})
	}
}

func TestReadTermUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "metadata1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if term, err := ReadTerm(dir); err == nil {
		t.Errorf("ReadTerm with a directory for a file = %d; want an error", term)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(encodeMetadata(1, 2, 3, 4))
	f.Add(encodeMetadata(1, 2, 3))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := parseMetadata(data)
		if ok && string(encodeMetadata(metadataFormat, m.version, m.term, m.vote)) != string(data) {
			t.Errorf("parseMetadata(%x) = %+v", data, m)
		}
	})
}

func TestNames(t *testing.T) {
	for _, id := range []uint64{1, BootstrapID, 1<<64 - 1} {
		if got, err := ParseName(Name(id)); got != id || err != nil {
			t.Errorf("ParseName(%s) = %x, %v", Name(id), got, err)
		}
	}
	for _, name := range []string{
		"", "member-", "1", "10.0.0.1:2380", "member-1", "member-0000000000000000", "member-00000000000000AB",
		"member-+000000000000001", "member-00000000000000001", "member-000000000000000g", " member-0000000000000001",
	} {
		if id, err := ParseName(name); err == nil {
			t.Errorf("ParseName(%q) = %x; want an error", name, id)
		}
	}
}

func TestRandomIDs(t *testing.T) {
	seen := map[uint64]bool{}
	for range 1000 {
		id := randomID()
		if id <= 1 || id == BootstrapID || seen[id] {
			t.Fatalf("randomID = %x; want one that is new and not dqlite's own", id)
		}
		seen[id] = true
	}
}

// TestBeginTerm stores terms as dqlite does: in turn, one more each.
func TestBeginTerm(t *testing.T) {
	dir := t.TempDir()
	if err := beginTerm(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("a fresh directory has %v, %v; want nothing", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "metadata1"), encodeMetadata(1, 1, 4, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		name string
		metadata
	}{
		{"metadata2", metadata{2, 5, 0}}, {"metadata1", metadata{3, 6, 0}}, {"metadata2", metadata{4, 7, 0}},
	} {
		if err := beginTerm(dir); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, want.name))
		if got, ok := parseMetadata(data); !ok || got != want.metadata || err != nil {
			t.Errorf("step %d: %s = %+v, %t, %v; want %+v", i, want.name, got, ok, err, want.metadata)
		}
	}
}
