package main

import (
	"fmt"
	"os/exec"
	"testing"
)

// TestListenLeavesChildrenTheirSignals: an ignored signal stays ignored over exec. Shells in pods could then never trap
// SIGHUP, and what runs in an SSH session would outlive it.
func TestListenLeavesChildrenTheirSignals(t *testing.T) {
	ignored := func() (mask uint64) {
		out, err := exec.Command("grep", "SigIgn", "/proc/self/status").Output()
		if err == nil {
			_, err = fmt.Sscanf(string(out), "SigIgn: %x", &mask)
		}
		if err != nil {
			t.Fatal(err)
		}
		return mask
	}
	before := ignored() // Not nothing, under nohup.
	listen()
	if after := ignored(); after&^before != 0 {
		t.Errorf("a child ignores the signals %#x; it was %#x before", after, before)
	}
}
