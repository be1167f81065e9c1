package containerd

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestConfig(t *testing.T) {
	for name, h := range map[string]host{
		"node.toml":      {cgroupV2: true, resource: true},
		"container.toml": {},
	} {
		t.Run(name, func(t *testing.T) {
			got := DefaultOptions().config(h)
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-update writes it: %s", d)
			}
			var c srvconfig.Config
			if err := srvconfig.LoadConfig(t.Context(), path, &c); err != nil {
				t.Errorf("containerd refuses it: %v", err)
			}
		})
	}
}

// TestPauseImage holds the name that containerd wants against the one that the image is built with.
func TestPauseImage(t *testing.T) {
	data, err := os.ReadFile("../../images/pause/image.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "tag: "+PauseImage+"\n") {
		t.Errorf("images/pause/image.yaml does not build %s", PauseImage)
	}
}
