package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// banned are packages that PID 1 must never link, with the reason. A name that ends in a slash stands for all below.
var banned = map[string]string{
	"net/http":                          "a bug in a web server would take the machine down; cairnd serves HTTP",
	"runtime/cgo":                       "init is static and runs before there is a libc",
	"plugin":                            "the same",
	"github.com/diskfs/go-diskfs":       "the root package brings 47 more; partition/gpt is enough",
	"github.com/spf13/cobra":            "init has no commands",
	"k8s.io/":                           "Kubernetes belongs to cairn-kube",
	"github.com/k3s-io/":                "the store belongs to cairn-store",
	"github.com/canonical/go-dqlite/":   "the same",
	"github.com/containerd/containerd/": "containers belong to cairn-kube",
	"google.golang.org/grpc":            "nothing speaks gRPC to init",
	"os/user":                           "looks into files that PID 1 must not depend on; provision reads the root's own",
}

func TestDeps(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "arm"} {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", ".")
		cmd.Env = append(os.Environ(), "GOARCH="+arch, "GOARM=7", "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go list for %s: %v\n%s", arch, err, out)
		}
		deps := strings.Fields(string(out))
		if len(deps) < 50 {
			t.Fatalf("go list for %s found %d packages; want the whole closure", arch, len(deps))
		}
		for _, dep := range deps {
			for bad, why := range banned {
				if dep == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(dep, bad) {
					t.Errorf("%s: init links %s: %s", arch, dep, why)
				}
			}
		}
	}
}
