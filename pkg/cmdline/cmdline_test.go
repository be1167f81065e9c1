package cmdline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []Param
	}{
		{"", nil},
		{" \n\t ", nil},
		{"quiet panic=10\n", []Param{{"quiet", "true"}, {"panic", "10"}}},
		{"console=tty0 console=ttyS0,115200", []Param{{"console", "tty0"}, {"console", "ttyS0,115200"}}},
		{`a="b c" "d=e f" "g h"`, []Param{{"a", "b c"}, {"d", "e f"}, {"g h", "true"}}},
		{`a=b=c`, []Param{{"a", "b=c"}}},
		{`a= b`, []Param{{"a", ""}, {"b", "true"}}},
		{`a="" b`, []Param{{"a", ""}, {"b", "true"}}},
		{`a="b c`, []Param{{"a", "b c"}}},
		{`a=x"y z"`, []Param{{"a", `x"y z"`}}}, // as the kernel: only outer quotes are dropped
		{"a=1 -- b=2", []Param{{"a", "1"}}},
		{`dyndbg="file a.c +p ; file b.c +p"`, []Param{{"dyndbg", "file a.c +p ; file b.c +p"}}},
	} {
		if diff := cmp.Diff(tt.want, Parse(tt.text).params); diff != "" {
			t.Errorf("Parse(%q): %s", tt.text, diff)
		}
	}
}

func TestGet(t *testing.T) {
	l := Parse("a=1 b a=2 c=off")
	if v, ok := l.Get("a"); v != "2" || !ok {
		t.Errorf("Get(a) = %q, %v; want the last value", v, ok)
	}
	if v, ok := l.Get("z"); v != "" || ok {
		t.Errorf("Get(z) = %q, %v; want none", v, ok)
	}
	if diff := cmp.Diff([]string{"1", "2"}, l.All("a")); diff != "" {
		t.Error(diff)
	}
	for key, want := range map[string]bool{"a": true, "b": true, "c": false, "z": false} {
		if got := l.Bool(key); got != want {
			t.Errorf("Bool(%s) = %v; want %v", key, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	l := Parse(`cairn.slot=a cairn.roothash=00 cairn.debug hostname=till-07 cairn.token="a b" k3os.dns_nameserver=10.0.0.2 ` +
		`k3os.dns_nameserver=1.1.1.1 cairnx.y=1 cairn=2 root=/dev/sda cairn.emergency run_cmd="a b"`)
	want := []Param{{"hostname", "till-07"}, {"cairn.token", "a b"}, {"k3os.dns_nameserver", "10.0.0.2"}, {"k3os.dns_nameserver", "1.1.1.1"}, {"run_cmd", "a b"}}
	if diff := cmp.Diff(want, l.Config()); diff != "" {
		t.Error(diff)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cmdline")
	if _, err := Read(path); err == nil {
		t.Error("Read of a missing file: no error")
	}
	if err := os.WriteFile(path, []byte("a=b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Read(path)
	if diff := cmp.Diff([]Param{{"a", "b"}}, l.Params()); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a", `a="b c" "d=e f`, "a=1 -- b", "\"\"", "a=\x00 =b", `" "`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := Parse(text)
		for _, p := range l.Params() {
			if strings.ContainsAny(p.Key, "=") {
				t.Errorf("Parse(%q): key %q holds =", text, p.Key)
			}
			if v, ok := l.Get(p.Key); !ok || len(l.All(p.Key)) == 0 || v != l.All(p.Key)[len(l.All(p.Key))-1] {
				t.Errorf("Parse(%q): Get(%q) = %q, %v", text, p.Key, v, ok)
			}
		}
	})
}
