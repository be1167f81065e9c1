package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/google/go-cmp/cmp"
)

const fragmentsDir = "../../../kernel-config"

func TestParseFragment(t *testing.T) {
	got, err := parseFragment("x.config", `# about these options

CONFIG_A=y       # needed
CONFIG_B="a b"   # a string # with two marks
CONFIG_C=0x10    # a number
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Option{
		{"CONFIG_A", "y", "needed", "x.config:3"},
		{"CONFIG_B", `"a b"`, "a string # with two marks", "x.config:4"},
		{"CONFIG_C", "0x10", "a number", "x.config:5"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestParseFragmentRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"CONFIG_A=y":                        "x.config:2: CONFIG_A has no reason",
		"CONFIG_A=y #":                      "x.config:2: CONFIG_A has no reason",
		"CONFIG_A=y# glued":                 "x.config:2: CONFIG_A has no reason",
		"A=y # no prefix":                   "x.config:2: want CONFIG_NAME=value",
		"CONFIG_A # no value":               "x.config:2: want CONFIG_NAME=value",
		"CONFIG_A= # no value":              "x.config:2: want CONFIG_NAME=value",
		"select CONFIG_A=y # not a setting": "x.config:2: want CONFIG_NAME=value",
	} {
		_, err := parseFragment("x.config", "\n"+line+"\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseFragment(%q) = %v; want %q", line, err, want)
		}
	}
}

func TestFragments(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"common.config": "CONFIG_A=y # one\n",
		"amd64.config":  "CONFIG_X86=y # PC\n",
		"arm64.config":  "CONFIG_ARM=y # board\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	options, err := Fragments(dir, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := merged(options), "CONFIG_X86=y\nCONFIG_A=y\n"; got != want {
		t.Errorf("fragments for amd64:\n%swant\n%s", got, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "other.config"), []byte("CONFIG_A=n # two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Fragments(dir, "amd64"); err == nil || !strings.Contains(err.Error(), "other.config:1: CONFIG_A is already at common.config:1") {
		t.Errorf("an option named twice: %v", err)
	}
	if _, err := Fragments(dir, "riscv64"); err == nil {
		t.Error("an unknown architecture is accepted")
	}
}

// TestRealFragments holds the project's own fragments to the format: every
// option once and with its reason.
func TestRealFragments(t *testing.T) {
	options, err := Fragments(fragmentsDir, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if len(options) < 400 {
		t.Errorf("only %d options; is %s complete?", len(options), fragmentsDir)
	}
}

func TestLost(t *testing.T) {
	options := []Option{
		{Name: "CONFIG_KEPT", Value: "y", Pos: "a:1"},
		{Name: "CONFIG_OFF", Value: "n", Pos: "a:2"},
		{Name: "CONFIG_ABSENT_AND_OFF", Value: "n", Pos: "a:3"},
		{Name: "CONFIG_STRING", Value: `"x"`, Pos: "a:4"},
	}
	config := "CONFIG_KEPT=y\n# CONFIG_OFF is not set\nCONFIG_STRING=\"x\"\n"
	if err := Lost(options, config); err != nil {
		t.Errorf("Lost = %v; want nil", err)
	}
	options = append(options,
		Option{Name: "CONFIG_DROPPED", Value: "y", Pos: "b:1"},
		Option{Name: "CONFIG_MODULE", Value: "y", Pos: "b:2"},
		Option{Name: "CONFIG_FORCED", Value: "n", Pos: "b:3"})
	err := Lost(options, config+"CONFIG_MODULE=m\nCONFIG_FORCED=y\n")
	want := "b:1: CONFIG_DROPPED=y became n\nb:2: CONFIG_MODULE=y became m\nb:3: CONFIG_FORCED=n became y"
	if err == nil || err.Error() != want {
		t.Errorf("Lost = %v; want\n%s", err, want)
	}
}

// TestBuiltKernelKeptFragments looks at the kernel that the cache holds for
// today's fragments.
func TestBuiltKernelKeptFragments(t *testing.T) {
	options, err := Fragments(fragmentsDir, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	built, err := filepath.Glob(filepath.Join(c.Dir(), "kernel-*", "fragments"))
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, path := range built {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != merged(options) {
			continue
		}
		config, err := os.ReadFile(filepath.Join(filepath.Dir(path), "config"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Lost(options, string(config)); err != nil {
			t.Errorf("%s:\n%v", filepath.Dir(path), err)
		}
		checked++
	}
	if checked == 0 {
		t.Skip("the cache holds no kernel of these fragments")
	}
}
