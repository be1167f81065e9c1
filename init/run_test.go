package main

import (
	"os/exec"
	"testing"
)

// TestListenLeavesChildrenTheirSignals: an ignored signal stays ignored over exec. Shells in pods could then never trap
// SIGHUP, and what runs in an SSH session would outlive it.
func TestListenLeavesChildrenTheirSignals(t *testing.T) {
	ignored := func() string {
		out, err := exec.Command("grep", "SigIgn", "/proc/self/status").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	before := ignored()
	listen()
	if after := ignored(); after != before {
		t.Errorf("a child has %swas %s", after, before)
	}
}
