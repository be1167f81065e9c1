package lane

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is a line of go test -json; see go doc test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds
}

// results gathers the outcome of every test over all commands of a run.
type results struct {
	outcome map[string]string // test to pass, fail or skip
	reason  map[string]string // of skipped tests
}

// verdictOrder says which outcome stays when a test ran in several lanes: a
// test that one lane skips and another runs was run.
var verdictOrder = []string{"", "skip", "pass", "fail"}

// logged matches lines of log/slog and of klog.
var logged = regexp.MustCompile(`^(time=|[IWEF]\d{4} |\{"level":)`)

// read takes the events of one go test from in. It prints the output of
// tests that fail, and a line for each package and each test of 5 s or more.
func (r *results) read(in io.Reader, out io.Writer, update func(string)) error {
	if r.outcome == nil {
		r.outcome, r.reason = map[string]string{}, map[string]string{}
	}
	pending := map[string]*bytes.Buffer{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // go's own complaints are plain text
			} else {
				r.take(e, pending, out, update)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
}

func (r *results) take(e event, pending map[string]*bytes.Buffer, out io.Writer, update func(string)) {
	name := strings.TrimPrefix(e.Package, "github.com/cairn-os/cairn/") + " " + e.Test
	switch e.Action {
	case "run":
		update(name)
		delete(pending, name)
	case "output":
		b, begun := pending[name]
		if begun && b == nil {
			return // what is said after the verdict
		}
		if b == nil {
			b = &bytes.Buffer{}
			pending[name] = b
		}
		b.WriteString(e.Output)
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.interrupted(name, pending, out)
		}
		r.end(name, e, pending[name], out)
		pending[name] = nil
	}
}

// interrupted takes the tests of a package that its process left without a
// verdict as failed: it panicked or was ended in them, and what it said last is
// part of their output.
func (r *results) interrupted(pkg string, pending map[string]*bytes.Buffer, out io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(pending)) {
		if name == pkg || !strings.HasPrefix(name, pkg) || pending[name] == nil {
			continue
		}
		fmt.Fprintf(out, "%sFAIL %s: its process ended in it\n", pending[name].Bytes(), name)
		r.outcome[name] = "fail"
		delete(pending, name)
	}
}

func (r *results) end(name string, e event, output *bytes.Buffer, out io.Writer) {
	if e.Action == "fail" && output != nil {
		fmt.Fprintf(out, "%s", output.Bytes())
	}
	if e.Test == "" {
		if e.Action != "skip" { // a package without tests
			fmt.Fprintf(out, "%-4s %s%s\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], name, duration(e.Elapsed))
		}
		return
	}
	if e.Elapsed >= 5 && e.Action == "pass" {
		fmt.Fprintf(out, "     %s%s\n", name, duration(e.Elapsed))
		for line := range strings.Lines(output.String()) {
			if said := strings.TrimSpace(line); !strings.HasPrefix(said, "===") && !strings.HasPrefix(said, "---") && !logged.MatchString(said) {
				fmt.Fprintf(out, "     %s", line) // figures that the test logged, not the log of what it tests
			}
		}
	}
	if slices.Index(verdictOrder, e.Action) > slices.Index(verdictOrder, r.outcome[name]) {
		r.outcome[name] = e.Action
	}
	if e.Action == "skip" {
		r.reason[name] = skipReason(output)
	}
}

func duration(seconds float64) string {
	return " " + (time.Duration(seconds*1000) * time.Millisecond).Round(100*time.Millisecond).String()
}

// skipReason is what the test said last before it skipped.
func skipReason(output *bytes.Buffer) string {
	reason := "no reason given"
	if output == nil {
		return reason
	}
	for line := range strings.Lines(output.String()) {
		if !strings.HasPrefix(strings.TrimSpace(line), "---") && !strings.HasPrefix(line, "===") {
			reason = strings.TrimSpace(line)
		}
	}
	return reason
}

// print writes the skipped tests with their reasons and the closing line.
func (r *results) print(out io.Writer) {
	count := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(r.outcome)) {
		count[r.outcome[name]]++
		if r.outcome[name] == "skip" {
			fmt.Fprintf(out, "skipped %s: %s\n", name, r.reason[name])
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
}
