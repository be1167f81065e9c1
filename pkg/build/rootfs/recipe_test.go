package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("../../../images/*/root.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %v, %v; want the recipes", files, err)
	}
	for _, file := range files {
		if _, err := LoadRecipe(file); err != nil {
			t.Error(err)
		}
	}
}

func TestBadRecipes(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"packages: [a]\nno_such_key: 1\n", "no_such_key"},
		{"packages: [a]\n---\npackages: [b]\n", "more than one document"},
		{"remove: [a]\n", "packages: none"},
		{"packages: [a]\nremove: ['../x']\n", "../x"},
		{"packages: [a]\nremove: ['[']\n", "pattern"},
		{"packages: [a]\ndirectories: [/abs]\n", "/abs"},
		{"packages: [a]\nlinks: {../x: y}\n", "../x"},
		{"packages: [a]\nmodes: {usr/bin/x: 0o4755}\n", "usr/bin/x"},
		{"packages: [a]\nmodes: {tmp: 0o777}\n", "tmp"},
	} {
		file := filepath.Join(t.TempDir(), "root.yaml")
		if err := os.WriteFile(file, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadRecipe(file); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("LoadRecipe(%q) = %v; want an error with %q", tt.text, err, tt.want)
		}
	}
}
