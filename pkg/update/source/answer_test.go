package source

import (
	"fmt"
	"strings"
	"testing"
)

func TestContentRange(t *testing.T) {
	for _, c := range []struct {
		text        string
		begin, size int64
		ok          bool
	}{
		{"bytes 5-9/10", 5, 10, true},
		{"bytes 0-0/1", 0, 1, true},
		{"bytes 5-9/*", 5, unknown, true},
		{"bytes */10", 0, 10, true},
		{"bytes */*", 0, unknown, false},
		{"bytes 5-10/10", 5, 10, false},
		{"bytes 9-5/10", 9, 10, false},
		{"bytes -5/10", 0, 10, false},
		{"bytes 5-/10", 5, 10, false},
		{"bytes 5-9", 0, 0, false},
		{"bytes 5-9/x", 0, 0, false},
		{"bytes 5-9/99999999999999999999", 0, 0, false},
		{"lines 5-9/10", 0, 0, false},
		{"", 0, 0, false},
	} {
		begin, size, ok := contentRange(c.text)
		if ok != c.ok || ok && (begin != c.begin || size != c.size) {
			t.Errorf("contentRange(%q) = %d, %d, %v; want %d, %d, %v", c.text, begin, size, ok, c.begin, c.size, c.ok)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("bytes 5-9/10", "text/html", []byte("<html>"))
	f.Add("bytes */10", "", []byte("\ufeff <!DOCTYPE HTML>"))
	f.Fuzz(func(t *testing.T, text, kind string, head []byte) {
		begin, size, ok := contentRange(text)
		if ok && (begin < 0 || size < unknown || size != unknown && begin > size) {
			t.Errorf("contentRange(%q) = %d, %d", text, begin, size)
		}
		if isPage(kind, head) && !strings.Contains(string(head), "<") {
			t.Errorf("%q of type %q counts as a web page", head, kind)
		}
		if q := printable(text); len(q) > 60*len(fmt.Sprintf("%q", "\xff")) {
			t.Errorf("printable(%q) has %d characters", text, len(q))
		}
	})
}
