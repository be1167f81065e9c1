package system

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/config"
)

// tree is a root with the given files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"run/cairn", "var/lib/cairn/config", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMergeConfigOrder(t *testing.T) {
	root := tree(t, map[string]string{
		seedConfig:                    "hostname: seed\nrun_cmd: [seed]\n",
		ownerConfig:                   "hostname: owner\n",
		ownerConfigDir + "/b.yaml":    "hostname: last\n",
		ownerConfigDir + "/a.yaml":    "hostname: first\ncairn: {labels: {store: \"1\"}}\n",
		ownerConfigDir + "/notes.txt": "not: a config\n",
	})
	c, err := mergeConfig(root, cmdline.Parse("hostname=line cairn.token=abcdefghijklmnop"), nil, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if c.Hostname != "last" || c.Cairn.Labels["store"] != "1" || len(c.RunCmd) != 1 || c.Cairn.Token == "" {
		t.Errorf("merged %+v; want the strongest of each", c)
	}
	for _, name := range []string{effectiveConfig, lastGoodConfig} {
		kept, err := config.Load(filepath.Join(root, name))
		if err != nil || kept.Hostname != "last" {
			t.Errorf("%s = %+v, %v; want the merged configuration", name, kept, err)
		}
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600, for it holds secrets", name, info.Mode())
		}
	}
}

func TestMergeConfigBad(t *testing.T) {
	bad := map[string]string{ownerConfig: "hostname: fine\nhostnam: typo\n"}
	root := tree(t, bad)
	_, err := mergeConfig(root, cmdline.Line{}, nil, t.Logf)
	if err == nil || !strings.Contains(err.Error(), "config.yaml:2: hostnam") {
		t.Errorf("without a last good one: %v; want the problem with its line", err)
	}
	if _, err := os.Stat(filepath.Join(root, effectiveConfig)); err == nil {
		t.Error("a bad configuration was left for the other processes")
	}
	bad[lastGoodConfig] = "hostname: good\n"
	root = tree(t, bad)
	var console strings.Builder
	c, err := mergeConfig(root, cmdline.Line{}, nil, func(format string, args ...any) { fmt.Fprintf(&console, format+"\n", args...) })
	if err != nil || c.Hostname != "good" {
		t.Fatalf("mergeConfig() = %+v, %v; want the last good one", c, err)
	}
	if !strings.Contains(console.String(), "config.yaml:2: hostnam") || !strings.Contains(console.String(), "last good one is used") {
		t.Errorf("the console said %q", console.String())
	}
	if got := read(t, root, effectiveConfig); got != "hostname: good\n" {
		t.Errorf("the effective document is %q", got)
	}
	if got := read(t, root, lastGoodConfig); got != "hostname: good\n" {
		t.Errorf("the last good document is %q now", got)
	}
}

// TestMergeConfigBadTogether: sources that are good one by one and not together are no configuration either.
func TestMergeConfigBadTogether(t *testing.T) {
	files := map[string]string{
		seedConfig: "cairn:\n  server_url: https://10.0.0.2:6443\n", ownerConfig: "hostname: owner\n", lastGoodConfig: "hostname: good\n",
	}
	root := tree(t, files)
	var console strings.Builder
	logf := func(format string, args ...any) { fmt.Fprintf(&console, format+"\n", args...) }
	c, err := mergeConfig(root, cmdline.Line{}, nil, logf)
	if err != nil || c.Hostname != "good" {
		t.Fatalf("mergeConfig() = %+v, %v; want the last good one", c, err)
	}
	if !strings.Contains(console.String(), "seed/config.yaml:2: cairn.server_url: joining a server needs cairn.token") {
		t.Errorf("the console said %q", console.String())
	}
	c, err = mergeConfig(root, cmdline.Parse("cairn.token=abcdefghijklmnop"), nil, logf)
	if err != nil || c.EffectiveRole() != config.RoleAgent {
		t.Errorf("with a token on the kernel command line: %+v, %v; want an agent", c, err)
	}
	if said := console.String(); !strings.Contains(said, "warning: cairn.token is on the kernel command line") || strings.Contains(said, "abcdefghijklmnop") {
		t.Errorf("the console said %q; want a warning without the token", said)
	}
}

// TestMergeConfigWithoutSeed: what is left when the seed's partition cannot be read is another machine, with another name
// and without its keys, and must not become the last good one.
func TestMergeConfigWithoutSeed(t *testing.T) {
	root := tree(t, map[string]string{ownerConfig: "run_cmd: [a]\n", lastGoodConfig: "hostname: good\n"})
	c, err := mergeConfig(root, cmdline.Line{}, os.ErrInvalid, t.Logf)
	if err != nil || c.Hostname != "good" || len(c.RunCmd) != 0 {
		t.Errorf("mergeConfig() = %+v, %v; want the last good one", c, err)
	}
	if got := read(t, root, lastGoodConfig); got != "hostname: good\n" {
		t.Errorf("the last good document is %q now", got)
	}
	if _, err := mergeConfig(tree(t, nil), cmdline.Line{}, os.ErrInvalid, t.Logf); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("without a last good one: %v; want why the seed cannot be read", err)
	}
}

func TestMergeConfigEmpty(t *testing.T) {
	root := tree(t, nil)
	c, err := mergeConfig(root, cmdline.Line{}, nil, t.Logf)
	if err != nil || c == nil {
		t.Fatalf("mergeConfig() = %v, %v; want an empty configuration", c, err)
	}
	// The second boot finds an empty last good one, and a typo.
	if err := os.WriteFile(filepath.Join(root, ownerConfig), []byte("x: y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := mergeConfig(root, cmdline.Line{}, nil, t.Logf); err != nil || c == nil {
		t.Errorf("with a typo after an empty one: %v, %v; want the empty one", c, err)
	}
}

func TestHostname(t *testing.T) {
	root := tree(t, nil)
	if got, err := hostname(root, "till-7"); got != "till-7" || err != nil {
		t.Errorf("hostname() = %q, %v; want the configured one", got, err)
	}
	first, err := hostname(root, "")
	if err != nil || !regexp.MustCompile(`^cairn-[0-9a-f]{6}$`).MatchString(first) {
		t.Errorf("hostname() = %q, %v; want a random one", first, err)
	}
	if again, err := hostname(root, ""); again != first || err != nil {
		t.Errorf("hostname() = %q, %v at the second boot; want %q", again, err, first)
	}
}

func TestWriteNames(t *testing.T) {
	root := tree(t, map[string]string{"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.2 server"})
	for range 2 {
		if err := writeNames(root, "till-7"); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := read(t, root, "etc/hosts"), "127.0.0.1 localhost\n10.0.0.2 server\n127.0.1.1\ttill-7\n"; got != want {
		t.Errorf("/etc/hosts = %q; want %q", got, want)
	}
	if got := read(t, root, "etc/hostname"); got != "till-7\n" {
		t.Errorf("/etc/hostname = %q", got)
	}
}
