package binaries

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	kubernetesModule = "k8s.io/kubernetes"
	containerdModule = "github.com/containerd/containerd/v2"
)

// moduleVersions reads the versions of the required modules from go.mod.
func moduleVersions(ctx context.Context, repo string) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "edit", "-json")
	cmd.Dir = repo
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read go.mod: %w", err)
	}
	var mod struct {
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		return nil, fmt.Errorf("read go.mod: %w", err)
	}
	versions := map[string]string{}
	for _, r := range mod.Require {
		versions[r.Path] = r.Version
	}
	for _, need := range []string{kubernetesModule, containerdModule} {
		if versions[need] == "" {
			return nil, fmt.Errorf("go.mod does not require %s", need)
		}
	}
	return versions, nil
}

// linkerFlags strip programs and tell them their versions. A build date would
// make each build differ, so Kubernetes keeps its default, the epoch.
func linkerFlags(version string, modules map[string]string) []string {
	flags := []string{"-s", "-w", "-X=github.com/cairn-os/cairn/pkg/release.Version=" + version,
		"-X=" + containerdModule + "/version.Version=" + modules[containerdModule]}
	kube := modules[kubernetesModule]
	parts := strings.SplitN(strings.TrimPrefix(kube, "v"), ".", 3)
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, x := range []struct{ name, value string }{
			{"gitVersion", kube}, {"gitMajor", parts[0]}, {"gitMinor", parts[1]}, {"gitTreeState", "clean"}, {"gitCommit", ""},
		} {
			flags = append(flags, "-X="+pkg+"."+x.name+"="+x.value)
		}
	}
	return flags
}

// SourceTime is the time that stands for the sources' age wherever a build
// records one: $SOURCE_DATE_EPOCH, else that of the last commit in repo, else,
// for sources without history, the epoch.
func SourceTime(ctx context.Context, repo string) (time.Time, error) {
	if text, ok := os.LookupEnv("SOURCE_DATE_EPOCH"); ok {
		return parseEpoch("SOURCE_DATE_EPOCH", text)
	}
	if _, err := os.Stat(repo + "/.git"); os.IsNotExist(err) {
		return time.Unix(0, 0).UTC(), nil
	}
	cmd := exec.CommandContext(ctx, "git", "-C", repo, "-c", "safe.directory=*", "log", "-1", "--format=%ct")
	out, err := cmd.Output()
	if err != nil {
		return time.Time{}, fmt.Errorf("time of the last commit: %w", err)
	}
	return parseEpoch("time of the last commit", string(out))
}

func parseEpoch(what, text string) (time.Time, error) {
	seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("%s: %q is not a number of seconds", what, text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
