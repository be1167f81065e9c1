package member

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResumeBootstrap(t *testing.T) {
	for name, tt := range map[string]struct{ before, after []string }{
		"before anything":     {[]string{bootstrapFile}, []string{bootstrapFile}},
		"after the term":      {[]string{bootstrapFile, "identity.json", "metadata1"}, []string{bootstrapFile, "identity.json"}},
		"while an entry":      {[]string{bootstrapFile, "metadata1", "tmp-0000000000000001-0000000000000001"}, []string{bootstrapFile, "tmp-0000000000000001-0000000000000001"}},
		"after the entry":     {[]string{bootstrapFile, "0000000000000001-0000000000000001", "metadata1"}, nil},
		"with an open one":    {[]string{bootstrapFile, "metadata1", "open-1"}, nil},
		"with a snapshot":     {[]string{bootstrapFile, "metadata1", "snapshot-1-128-1.meta"}, nil},
		"long ago, log lost":  {[]string{"identity.json", "metadata1"}, nil},
		"names that look odd": {[]string{bootstrapFile, "0000000000000001-x", "metadata2"}, []string{bootstrapFile, "0000000000000001-x"}},
	} {
		dir := t.TempDir()
		for _, file := range tt.before {
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := resumeBootstrap(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tt.after == nil {
			tt.after = tt.before
		}
		if diff := cmp.Diff(tt.after, names(t, dir)); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", name, diff)
		}
	}
}

func TestBootstrapEnds(t *testing.T) {
	dir := t.TempDir()
	if _, err := loadIdentity(dir, false); err != nil {
		t.Fatal(err)
	}
	if want := []string{bootstrapFile, identityFile}; !slices.Equal(names(t, dir), want) {
		t.Errorf("files of a new first member: %q; want %q", names(t, dir), want)
	}
	for range 2 {
		if err := endBootstrap(dir); err != nil {
			t.Fatal(err)
		}
		if want := []string{identityFile}; !slices.Equal(names(t, dir), want) {
			t.Errorf("files once it is bootstrapped: %q; want %q", names(t, dir), want)
		}
	}
	joining := t.TempDir()
	if _, err := loadIdentity(joining, true); err != nil {
		t.Fatal(err)
	}
	if want := []string{identityFile}; !slices.Equal(names(t, joining), want) {
		t.Errorf("files of a member that joins: %q; want %q", names(t, joining), want)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
