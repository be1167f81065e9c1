package bench

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Begin notes what is measured beside and what else the machine does; the
// returned function makes the report when the measurement is over.
func Begin(ctx context.Context, peer string) func() *Report {
	r := &Report{Peer: peer, Version: sources(ctx), Started: time.Now().UTC().Format(time.RFC3339)}
	before := loadAverages()
	return func() *Report {
		r.Load = before + " before, " + loadAverages() + " after"
		return r
	}
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
