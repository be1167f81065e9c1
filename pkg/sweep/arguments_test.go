package sweep

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestArguments(t *testing.T) {
	log := filepath.Join(t.TempDir(), `a,"log`)
	if err := os.WriteFile(log, []byte("of another run"), 0o600); err != nil {
		t.Fatal(err)
	}
	args, err := Arguments("disk,1.img", log)
	if err != nil || len(args) != 4 {
		t.Fatalf("Arguments() = %q, %v", args, err)
	}
	var node struct {
		Driver    string
		File, Log struct{ Driver, Filename string }
	}
	if err := json.Unmarshal([]byte(args[1]), &node); err != nil {
		t.Fatal(err)
	}
	if node.Driver != "blklogwrites" || node.File.Filename != "disk,1.img" || node.Log.Filename != log {
		t.Errorf("block device %s", args[1])
	}
	if info, err := os.Stat(log); err != nil || info.Size() != 0 {
		t.Errorf("the log is not made anew: %v", err)
	}
	if _, err := Arguments("disk", filepath.Join(log, "none")); err == nil {
		t.Error("a log that cannot be made gave no error")
	}
}
