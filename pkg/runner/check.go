package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/status"
)

// event is a moment of a machine's way from power-on to a served page.
type event struct {
	name  string
	after time.Duration // since power-on
}

// moments are lines of the console that mark the way to Ready.
var moments = []struct {
	name string
	re   *regexp.Regexp
}{
	{"kernel starts", regexp.MustCompile(`Linux version`)},
	{"first phase", regexp.MustCompile(`phase 1/\d+ `)},
	{"last phase", regexp.MustCompile(`phase (\d+)/(\d+) services`)},
	{"node Ready", regexp.MustCompile(`cairn: node \S+ Ready after`)},
}

// Check follows m from power-on until a pod of the demonstration image serves
// its page through a Service, and prints how long each step took.
func Check(ctx context.Context, m Machine, built *image.Output, dir string, out io.Writer) error {
	var timeline []event
	mark := func(name string) {
		timeline = append(timeline, event{name, time.Since(m.PowerOn())})
		fmt.Fprintf(out, "==> %s after %s\n", name, time.Since(m.PowerOn()).Round(100*time.Millisecond))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.Done():
			cancel(fmt.Errorf("the machine ended; its console's end:\n%s", m.Console().Tail(25)))
		case <-ctx.Done():
		}
	}()
	cluster, err := Access(ctx, m, built, dir)
	if err != nil {
		return causeOf(ctx, err)
	}
	mark("kubeconfig fetched")
	if err := cluster.WaitNodeReady(ctx, m.Name()); err != nil {
		return causeOf(ctx, err)
	}
	mark("node Ready, seen from here")
	if err := cluster.DeployHello(ctx, built.HelloTag); err != nil {
		return causeOf(ctx, err)
	}
	pod, err := cluster.WaitPod(ctx, helloName)
	if err != nil {
		return causeOf(ctx, err)
	}
	mark("pod " + pod.Name + " ready")
	if err := FetchPage(ctx, m.Page()); err != nil {
		return causeOf(ctx, err)
	}
	mark("page fetched from " + m.Page())
	return report(ctx, m, timeline, out)
}

// causeOf prefers what ended ctx to the error that the end brought about.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// report prints the timeline, the machine's own account and its memory.
func report(ctx context.Context, m Machine, timeline []event, out io.Writer) error {
	fmt.Fprintf(out, "\n%-40s %s\n", "timeline", "since power-on")
	for _, moment := range moments {
		if line, ok := m.Console().Find(moment.re); ok {
			fmt.Fprintf(out, "%-40s %8.1fs\n", moment.name, line.At.Sub(m.PowerOn()).Seconds())
		}
	}
	for _, e := range timeline {
		fmt.Fprintf(out, "%-40s %8.1fs\n", e.name, e.after.Seconds())
	}
	text, err := m.Run(ctx, "cairnctl status --output json")
	if err != nil {
		return fmt.Errorf("ask the machine for its status: %w", err)
	}
	var st status.Status
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		return fmt.Errorf("status of %s: %w", m.Name(), err)
	}
	fmt.Fprintf(out, "\n%-12s %-10s %10s %10s %9s\n", "process", "state", "started", "ready", "RSS MiB")
	for _, p := range st.Processes {
		fmt.Fprintf(out, "%-12s %-10s %10s %10s %9.0f\n", p.Name, p.State, p.StartedS, p.ReadyS, float64(p.RSSBytes)/(1<<20))
	}
	if _, own := m.(*VM); !own {
		return nil // its /proc/meminfo is this machine's
	}
	used, err := UsedMemory(ctx, m)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "memory in use (MemTotal - MemAvailable): %d MiB\n", used>>20)
	return nil
}

// UsedMemory is MemTotal - MemAvailable of proc_meminfo(5) on m, in bytes.
func UsedMemory(ctx context.Context, m Machine) (int64, error) {
	text, err := m.Run(ctx, "cat /proc/meminfo")
	if err != nil {
		return 0, err
	}
	var total, available int64
	for _, f := range []struct {
		re *regexp.Regexp
		to *int64
	}{{regexp.MustCompile(`MemTotal: +(\d+) kB`), &total}, {regexp.MustCompile(`MemAvailable: +(\d+) kB`), &available}} {
		match := f.re.FindStringSubmatch(text)
		if match == nil {
			return 0, fmt.Errorf("/proc/meminfo of %s lacks %s", m.Name(), f.re)
		}
		if _, err := fmt.Sscan(match[1], f.to); err != nil {
			return 0, err
		}
	}
	return (total - available) << 10, nil
}
