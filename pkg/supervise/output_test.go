package supervise

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestOutputLines(t *testing.T) {
	o, path := openTestOutput(t, 1<<20)
	s := o.stream()
	for _, part := range []string{"one\ntw", "o\n", "\nlong " + strings.Repeat("x", maxLine) + "\nno end"} {
		if n, err := s.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write() = %d, %v", n, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stamps := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z `)
	want := "one\ntwo\n\nlong " + strings.Repeat("x", maxLine-5) + "\nxxxxx\nno end\n"
	if text := stamps.ReplaceAllString(string(got), ""); text != want {
		t.Errorf("log %q; want %q", text, want)
	}
	if n := len(stamps.FindAll(got, -1)); n != 6 {
		t.Errorf("%d time stamps; want 6", n)
	}
}

func TestOutputIsBounded(t *testing.T) {
	const max = 4 << 10
	o, path := openTestOutput(t, max)
	s := o.stream()
	for i := range 1000 {
		fmt.Fprintf(s, "line %d\n", i)
	}
	for _, p := range []string{path, path + ".1"} {
		st, err := os.Stat(p)
		if err != nil || st.Size() > max || st.Size() < 20 {
			t.Fatalf("%s: %v, %v; want something, but at most %d bytes", p, st, err, max)
		}
	}
	newest, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(newest), "line 999\n") {
		t.Errorf("the newest line is not last: %v", err)
	}
	if got, want := s.last(3), []string{"line 997", "line 998", "line 999"}; !slices.Equal(got, want) {
		t.Errorf("last(3) = %q; want %q", got, want)
	}
	if n := len(s.last(1000)); n != tailLines {
		t.Errorf("%d lines in memory; want %d", n, tailLines)
	}
}

// TestOutputGoesOnWithoutItsFile: a service must not block or fail because its log cannot be written.
func TestOutputGoesOnWithoutItsFile(t *testing.T) {
	var said []string
	path := filepath.Join(t.TempDir(), "gone", "web.log")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	o, err := openOutput(path, 64, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	s := o.stream()
	for i := range 10 {
		if _, err := fmt.Fprintf(s, "a line long enough to rotate at once %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if len(said) != 1 {
		t.Errorf("said %q; want one line", said)
	}
	if got := s.last(1); len(got) != 1 || !strings.HasSuffix(got[0], "9") {
		t.Errorf("last(1) = %q", got)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(s, "there again")
	if log, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(log), "there again\n") {
		t.Errorf("log after the disk came back: %q, %v", log, err)
	}
}

func openTestOutput(t *testing.T, max int64) (*output, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.log")
	o, err := openOutput(path, max, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o, path
}

// TestTailIsOfOneRun: what an earlier instance said must not be printed again when a later one dies in silence.
func TestTailIsOfOneRun(t *testing.T) {
	o, _ := openTestOutput(t, 1<<20)
	first := o.stream()
	fmt.Fprintln(first, "first")
	second := o.stream()
	fmt.Fprintln(first, "a child of the first still talks")
	if got := second.last(5); len(got) != 0 {
		t.Errorf("last() of a silent run = %q; want nothing", got)
	}
	fmt.Fprintln(second, "second")
	if got, want := second.last(5), []string{"second"}; !slices.Equal(got, want) {
		t.Errorf("last() = %q; want %q", got, want)
	}
}

func TestConsoleLine(t *testing.T) {
	if got, want := consoleLine("bad \x1b[2Jname\r"), "bad  [2Jname "; got != want {
		t.Errorf("consoleLine() = %q; want %q", got, want)
	}
	if got := consoleLine(strings.Repeat("é", maxLine)); len(got) > consoleWidth+len("…") || !strings.HasSuffix(got, "é…") {
		t.Errorf("consoleLine() of a long line has %d bytes and ends in %q", len(got), got[len(got)-6:])
	}
}
