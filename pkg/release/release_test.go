package release_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/release"
)

func TestRoundTrip(t *testing.T) {
	want := release.Info{Version: "1.2.3", Kubernetes: "v1.36.4", Kernel: "6.12.1", BuildTime: 1767225600}
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "release.json")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := release.Load(path); err != nil || got != want {
		t.Errorf("Load = %+v, %v; want %+v", got, err, want)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "release.json")
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := release.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Load of a torn file: %v; want an error that names it", err)
	}
}
