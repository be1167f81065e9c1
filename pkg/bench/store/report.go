package store

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
)

// startReport notes what is measured and what else the machine does; the
// returned function makes the report when the measurement is over.
func startReport(ctx context.Context, p Programs) (func() *bench.Report, error) {
	peer, err := p.peer(ctx)
	if err != nil {
		return nil, err
	}
	r := &bench.Report{Peer: peer, Version: sources(ctx), Started: time.Now().UTC().Format(time.RFC3339)}
	before := loadAverages()
	return func() *bench.Report {
		r.Load = before + " before, " + loadAverages() + " after"
		return r
	}, nil
}

// sources describes the sources as git does; empty where there is no git.
func sources(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// loadAverages are those of 1, 5 and 15 minutes.
func loadAverages() string {
	text, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 3 {
		return "unknown"
	}
	return strings.Join(fields[:3], " ")
}
