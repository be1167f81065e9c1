package oci

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("../../../images/*/image.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Fatalf("found %v; want the recipes of pause and hello", files)
	}
	for _, f := range files {
		if _, err := LoadRecipe(f); err != nil {
			t.Error(err)
		}
	}
}

func TestParseRecipeRefuses(t *testing.T) {
	const good = "tag: cairn.local/x:1\nfiles: [{path: a, file: a}]\nentrypoint: [/a]\nuser: \"1:1\"\n"
	if _, err := parseRecipe([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"unknown key":   good + "colour: red\n",
		"two documents": good + "---\n" + good,
		"no tag":        strings.Replace(good, "cairn.local/x:1", "cairn.local/x", 1),
		"two sources":   strings.Replace(good, "file: a", "file: a, package: b", 1),
		"no source":     strings.Replace(good, ", file: a", "", 1),
		"climbing":      strings.Replace(good, "path: a", "path: ../a", 1),
		"named user":    strings.Replace(good, "1:1\"", "root\"", 1),
		"no entry":      strings.Replace(good, "entrypoint: [/a]\n", "", 1),
	} {
		if _, err := parseRecipe([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAssemble(t *testing.T) {
	r := &Recipe{Tag: "cairn.local/x:1", Entrypoint: []string{"/bin/x"}, User: "65534:65534"}
	files := []content{{"bin/x", []byte("program"), 0o755}, {"www/a/index.html", []byte("page"), 0o644}}
	write := func(path string) []byte {
		t.Helper()
		img, err := assemble(r, "armhf", files)
		if err != nil {
			t.Fatal(err)
		}
		tag, err := name.NewTag(r.Tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := tarball.WriteToFile(path, tag, img); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if !bytes.Equal(write(path), write(path+"2")) {
		t.Error("two builds differ")
	}
	img, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Architecture != "arm" || cfg.Variant != "v7" || cfg.OS != "linux" || cfg.Config.User != r.User {
		t.Errorf("config = %+v; want linux/arm/v7 and the user", cfg)
	}
}
