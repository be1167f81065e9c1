package peer

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func entry(id, sequence uint64, addresses ...string) Entry {
	return Entry{ID: id, Name: fmt.Sprintf("n%d", id), Addresses: addresses, Sequence: sequence}
}

func newBook(t *testing.T) (*Book, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return openBook(filepath.Join(t.TempDir(), "addresses.json"), 1, slog.New(slog.NewTextHandler(&log, nil))), &log
}

func (b *Book) reopen() *Book { return openBook(b.path, b.own, b.log) }

func TestBook(t *testing.T) {
	b, log := newBook(t)
	setOwn := func(addresses ...string) {
		t.Helper()
		if err := b.SetOwn(Entry{Name: "n1", Addresses: addresses}); err != nil {
			t.Fatal(err)
		}
	}
	setOwn("10.0.0.1:2380")
	setOwn("10.0.0.1:2380")
	if !b.Merge([]Entry{entry(2, 3, "10.0.0.2:2380"), entry(3, 1, "node3:2380", "[fd00::3]:2380")}) {
		t.Error("news were none")
	}
	if b.Merge([]Entry{entry(2, 2, "10.9.9.9:2380"), entry(2, 3, "10.9.9.9:2380")}) {
		t.Error("old news were news")
	}
	b = b.reopen()
	setOwn("10.0.0.7:2380")
	want := []Entry{entry(1, 2, "10.0.0.7:2380"), entry(2, 3, "10.0.0.2:2380"), entry(3, 1, "node3:2380", "[fd00::3]:2380")}
	if diff := cmp.Diff(want, b.All()); diff != "" {
		t.Error(diff)
	}
	b.Remove(2)
	b.Remove(1) // stays
	b = b.reopen()
	if diff := cmp.Diff([]Entry{want[0], want[2]}, b.All()); diff != "" {
		t.Error(diff)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}

// TestBookWrites looks for writes of what did not change: cards wear out.
func TestBookWrites(t *testing.T) {
	b, _ := newBook(t)
	if err := b.SetOwn(entry(1, 0, "a:1")); err != nil {
		t.Fatal(err)
	}
	b.Merge([]Entry{entry(2, 1, "b:1")})
	long := time.Unix(1e9, 0)
	if err := os.Chtimes(b.path, long, long); err != nil {
		t.Fatal(err)
	}
	b.Merge(b.All())
	b.Merge([]Entry{entry(2, 1, "c:1")})
	b.Remove(7)
	if err := b.SetOwn(entry(1, 0, "a:1")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(b.path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.ModTime().Equal(long) {
		t.Error("the file was written though nothing changed")
	}
}

// TestLostBook has a member come back without its book and with a new address.
func TestLostBook(t *testing.T) {
	others, _ := newBook(t)
	others.own = 2
	others.Merge([]Entry{entry(1, 9, "old:1")})
	b, log := newBook(t)
	if err := b.SetOwn(entry(1, 0, "new:1")); err != nil {
		t.Fatal(err)
	}
	if others.Merge(b.All()) {
		t.Error("a lower sequence number won")
	}
	b.Merge(others.All())
	if !others.Merge(b.All()) {
		t.Error("the new address did not get through")
	}
	if diff := cmp.Diff([]string{"new:1"}, others.addresses(1)); diff != "" {
		t.Error(diff)
	}
	if b.Merge(others.All()) || !strings.Contains(log.String(), "old:1") {
		t.Errorf("the two do not agree, or nothing was said: %s", log)
	}
}

// TestOwnBeforeSetOwn merges before the member said where it is.
func TestOwnBeforeSetOwn(t *testing.T) {
	b, _ := newBook(t)
	b.Merge([]Entry{entry(1, 9, "old:1")})
	if err := b.SetOwn(entry(1, 0, "new:1")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Entry{entry(1, 10, "new:1")}, b.All()); diff != "" {
		t.Error(diff)
	}
}

func TestBadEntries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		entry Entry
		want  string
	}{
		{"no ID", entry(0, 1, "a:1"), "ID is 0"},
		{"no sequence", entry(2, 0, "a:1"), "sequence number 0"},
		{"sequence that cannot be outdone", entry(2, 1<<63, "a:1"), "sequence number"},
		{"no address", entry(2, 1), "0 addresses"},
		{"no port", entry(2, 1, "a"), "want host:port"},
		{"port 0", entry(2, 1, "a:0"), "want a port"},
		{"no host", entry(2, 1, ":2380"), "want a host"},
		{"any address", entry(2, 1, "[::]:2380"), "advertise an address"},
		{"control characters", Entry{ID: 2, Name: "a\nb", Sequence: 1, Addresses: []string{"a:1"}}, "name: want"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, log := newBook(t)
			if b.Merge([]Entry{tt.entry}) || !strings.Contains(log.String(), tt.want) {
				t.Errorf("Merge: %v, logged %q; want %q", b.All(), log, tt.want)
			}
		})
	}
	b, _ := newBook(t)
	if err := b.SetOwn(Entry{Name: "a", Addresses: []string{"0.0.0.0:2380"}}); err == nil || !strings.Contains(err.Error(), "advertise") {
		t.Errorf("SetOwn of any address: %v; want what to do", err)
	}
	if err := b.SetOwn(entry(2, 0, "a:1")); err == nil {
		t.Error("SetOwn took another member's entry")
	}
}

func TestFullBook(t *testing.T) {
	b, _ := newBook(t)
	var many []Entry
	for i := range uint64(maxEntries + 10) {
		many = append(many, entry(i+2, 1, "a:1"))
	}
	b.Merge(many)
	if got := len(b.reopen().All()); got != maxEntries {
		t.Errorf("%d entries; want %d", got, maxEntries)
	}
}

func TestDamagedBook(t *testing.T) {
	good, err := formatBook([]Entry{entry(2, 1, "a:1")})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, content, want string }{
		{"empty", "", "EOF"},
		{"torn", string(good[:len(good)/2]), "byte"},
		{"zeros", strings.Repeat("\x00", 100), "invalid character"},
		{"two documents", string(good) + string(good), "more than one document"},
		{"newer", `{"version": 2}`, "version 2: want 1"},
		{"bad ID", `{"version":1,"members":[{"id":"x"}]}`, `member ID "x"`},
		{"bad type", `{"version":1,"members":{}}`, "cannot unmarshal"},
		{"twice", strings.Replace(string(good), "[", "["+string(entryJSON(t, entry(2, 2, "b:1")))+",", 1), "is there twice"},
		{"bad entry", `{"version":1,"members":[{"id":"0000000000000002","name":"n","sequence":1}]}`, "member 1 of 1: member-0000000000000002"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, log := newBook(t)
			if err := os.WriteFile(b.path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			b = b.reopen()
			if len(b.All()) != 0 || !strings.Contains(log.String(), b.path) || !strings.Contains(strings.ReplaceAll(log.String(), `\"`, `"`), tt.want) {
				t.Errorf("entries %v, logged %q; want none and %q", b.All(), log, tt.want)
			}
			if kept, err := os.ReadFile(b.path + ".damaged"); err != nil || string(kept) != tt.content {
				t.Errorf("moved aside: %q, %v", kept, err)
			}
			if err := b.SetOwn(entry(1, 0, "a:1")); err != nil {
				t.Fatal(err)
			}
			if len(b.reopen().All()) != 1 {
				t.Error("the new book is not kept")
			}
		})
	}
}

func entryJSON(t *testing.T, e Entry) []byte {
	t.Helper()
	data, err := e.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func FuzzBook(f *testing.F) {
	good, err := formatBook([]Entry{entry(1, 1, "a:1", "[::1]:2"), {ID: 1 << 63, Name: "é", Sequence: 5, Addresses: []string{"b:1"}, Witness: true, Zone: "z"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte(`{"version":1,"members":[null]}`))
	f.Add([]byte(`{"version":1,"members":[{"id":"0000000000000001","name":"n","sequence":18446744073709551615,"addresses":[""]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseBook(data)
		if err != nil {
			return
		}
		again, err := formatBook(entries)
		if err != nil {
			t.Fatal(err)
		}
		reread, err := parseBook(again)
		if err != nil {
			t.Fatalf("%s\nwas written for\n%s\nand is refused: %v", again, data, err)
		}
		if diff := cmp.Diff(entries, reread, cmp.Transformer("nil", func(s []Entry) string { return fmt.Sprint(s) })); diff != "" {
			t.Fatal(diff)
		}
	})
}
