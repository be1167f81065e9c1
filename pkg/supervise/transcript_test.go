package supervise

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/reaper"
)

var update = flag.Bool("update", false, "rewrite the transcripts")

// TestTranscripts plays testdata/*.txt: lines beginning with ">" are events at a time since power-on, the indented
// lines below them are what the machine answered. "go test -update" writes the answers.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("transcripts: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// play runs the events of a transcript and returns it with the answers that were given.
func play(t *testing.T, transcript string) string {
	t.Helper()
	m := newMachine(withDefaults(Service{
		Name: "web", Argv: []string{"web"}, Notify: true, ReadyTimeout: time.Minute, Oneshot: strings.HasPrefix(transcript, "# One-shot"),
	}))
	var out strings.Builder
	pid := 100
	lines := bufio.NewScanner(strings.NewReader(transcript))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&out, line)
			continue
		case !strings.HasPrefix(line, "> "):
			continue // an old answer
		}
		fmt.Fprintln(&out, line)
		at, event, _ := strings.Cut(line[2:], " ")
		now, err := time.ParseDuration(at)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		acts, err := feed(t, m, now, event)
		for len(acts) > 0 {
			a := acts[0]
			acts = acts[1:]
			fmt.Fprintf(&out, "  %s\n", strings.TrimSpace(string(a.kind)+" "+a.text))
			if a.kind != actStart {
				continue
			}
			var more []action
			var spawnErr error
			if strings.HasSuffix(event, "but exec fails") {
				more, spawnErr = m.spawnFailed(now, errors.New("no such file"))
			} else {
				pid++
				more, spawnErr = m.spawned(now, pid)
			}
			if spawnErr != nil {
				t.Fatalf("%q: %v", line, spawnErr)
			}
			acts = append(acts, more...)
		}
		if err != nil {
			fmt.Fprintf(&out, "  error: %v\n", err)
		}
		if err := m.invariant(); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		fmt.Fprintf(&out, "  = %s", m.state)
		if m.deadline != 0 {
			fmt.Fprintf(&out, " until %s", m.deadline)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func feed(t *testing.T, m *machine, now time.Duration, event string) ([]action, error) {
	t.Helper()
	event = strings.TrimSuffix(event, " but exec fails")
	name, arg, _ := strings.Cut(event, " ")
	switch name {
	case "dependencies":
		return m.dependenciesReady()
	case "ready":
		return m.notified(now)
	case "exit":
		return m.exited(now, reaper.Exit{Code: atoi(t, arg)})
	case "says":
		return m.said(now, arg), nil
	case "tick":
		return m.tick(now)
	case "start", "stop", "restart", "shutdown":
		return m.request(now, request(name))
	default:
		t.Fatalf("unknown event %q", event)
		return nil, nil
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDelay(t *testing.T) {
	want := []time.Duration{200 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second,
		16 * time.Second, 32 * time.Second, time.Minute, time.Minute}
	for i, w := range want {
		if got := delay(i + 1); got != w {
			t.Errorf("delay(%d) = %s; want %s", i+1, got, w)
		}
	}
	if got := delay(1 << 20); got != time.Minute {
		t.Errorf("delay(1<<20) = %s; want a minute", got)
	}
}

// TestAnyOrderKeepsTheInvariant feeds every sequence of five events: no order may panic or break the invariant.
func TestAnyOrderKeepsTheInvariant(t *testing.T) {
	events := []string{"dependencies", "ready", "exit 0", "exit 1", "tick", "start", "stop", "restart", "shutdown"}
	var walk func(path []string)
	walk = func(path []string) {
		if len(path) == 5 {
			var b strings.Builder
			for i, e := range path {
				fmt.Fprintf(&b, "> %ds %s\n", (i+1)*30, e)
			}
			play(t, b.String())
			play(t, "# One-shot\n"+b.String())
			return
		}
		for _, e := range events {
			walk(append(path, e))
		}
	}
	walk(nil)
}
