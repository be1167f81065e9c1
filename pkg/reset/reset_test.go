package reset

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files are what a machine has on its data partition; a name that ends in / is a directory.
var files = []string{
	"lost+found/#12", "lib/cairn/config.yaml", "lib/cairn/config.d/a.yaml", "lib/cairn/config.d/b/c.yaml", "lib/cairn/config/last-good.yaml",
	"lib/cairn/node/identity.pem", "lib/cairn/node/membership.json", "lib/cairn/server/tls/server-ca.pem", "lib/cairn/store/member/data",
	"lib/cairn/hostname", "lib/kubelet/pods/1/volumes/x", "lib/cairn/node/joining",
	// Of the pod network and the machine's. What these make besides is in the kernel, or in /etc and /run, which no boot keeps.
	"lib/cairn/node/pod-network.json", "lib/cairn/node/wireguard.key", "lib/cairn/network/eth0.lease",
	"log/pods/", "home/user/secret", "tmp/", "lib/cairn/reset.d/x",
}

func machine(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range files {
		path := filepath.Join(root, "var", name)
		if name[len(name)-1] == '/' {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// What a link points to is not the machine's to remove.
	if err := errors.Join(os.WriteFile(filepath.Join(root, "outside"), nil, 0o600), os.Symlink(root, filepath.Join(root, "var/lib/link"))); err != nil {
		t.Fatal(err)
	}
	return root
}

func left(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	base := filepath.Join(root, "var")
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(base, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantLeft(keepConfig bool) []string {
	if keepConfig {
		return []string{"lib/cairn/config.d/a.yaml", "lib/cairn/config.d/b/c.yaml", "lib/cairn/config.yaml", "lost+found/#12"}
	}
	return []string{"lost+found/#12"}
}

func TestRun(t *testing.T) {
	for _, keep := range []bool{false, true} {
		root := machine(t)
		before := left(t, root)
		if err := Run(root, t.Logf); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, left(t, root)); diff != "" {
			t.Errorf("without a marker:\n%s", diff)
		}
		if err := (Request{KeepConfig: keep}).Write(root); err != nil {
			t.Fatal(err)
		}
		if err := Run(root, t.Logf); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantLeft(keep), left(t, root)); diff != "" {
			t.Errorf("keeping the configuration %v:\n%s", keep, diff)
		}
		if _, err := os.Stat(filepath.Join(root, "outside")); err != nil {
			t.Errorf("a link was followed: %v", err)
		}
	}
}

var errCut = errors.New("power cut")

// TestCut cuts the power before each step. The next boot ends the reset, and no boot ever finds data without the marker.
func TestCut(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for at := 0; ; at++ {
			root := machine(t)
			if err := (Request{KeepConfig: keep}).Write(root); err != nil {
				t.Fatal(err)
			}
			step, last := -1, ""
			err := run(root, t.Logf, steps{func(name string) error {
				if step++; step >= at { // nothing works any more
					last = name
					return errCut
				}
				return nil
			}})
			if err == nil {
				if at < 8 {
					t.Errorf("only %d steps", at)
				}
				break
			}
			if !errors.Is(err, errCut) {
				t.Fatalf("step %d: %v", at, err)
			}
			_, markerErr := os.Stat(filepath.Join(root, Marker))
			if clean := cmp.Equal(wantLeft(keep), left(t, root)); !clean && markerErr != nil {
				t.Errorf("cut at %s: no marker, and these are left: %v", last, left(t, root))
			}
			if err := Run(root, t.Logf); err != nil {
				t.Fatalf("the boot after a cut at %s: %v", last, err)
			}
			if diff := cmp.Diff(wantLeft(keep), left(t, root)); diff != "" {
				t.Errorf("after a cut at %s:\n%s", last, diff)
			}
		}
	}
}

// TestCutInside resumes from any part of the removal: a directory's removal may be cut as well.
func TestCutInside(t *testing.T) {
	for seed := range uint64(30) {
		root := machine(t)
		if err := (Request{}).Write(root); err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(seed, 0))
		for _, name := range left(t, root) {
			if name != "lib/cairn/reset" && r.IntN(2) == 0 {
				if err := os.Remove(filepath.Join(root, "var", name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := Run(root, t.Logf); err != nil {
			t.Fatal(err)
		}
		if got := left(t, root); len(got) > 1 || len(got) == 1 && got[0] != "lost+found/#12" {
			t.Errorf("seed %d: left %v", seed, got)
		}
	}
}

func TestMarker(t *testing.T) {
	for text, want := range map[string]error{"": nil, "\n": nil, "{}": nil, "yes": ErrMarker, "[]": ErrMarker} {
		root := machine(t)
		if err := os.WriteFile(filepath.Join(root, Marker), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := left(t, root)
		err := Run(root, t.Logf)
		if !errors.Is(err, want) {
			t.Errorf("Run with the marker %q = %v; want %v", text, err, want)
		}
		if want != nil && !cmp.Equal(before, left(t, root)) {
			t.Errorf("the marker %q made it remove something", text)
		}
	}
}

// TestStubborn: what cannot be removed spares nothing else, and the marker stays.
func TestStubborn(t *testing.T) {
	root := machine(t)
	if err := (Request{}).Write(root); err != nil {
		t.Fatal(err)
	}
	var told []string
	logf := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	err := run(root, logf, steps{func(name string) error {
		if name == "home" {
			return fs.ErrPermission
		}
		return nil
	}})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Run = %v; want why it is not complete", err)
	}
	if diff := cmp.Diff([]string{"home/user/secret", "lib/cairn/reset", "lost+found/#12"}, left(t, root)); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(told, "FACTORY RESET: everything on the data partition is removed") {
		t.Errorf("the console said %q", told)
	}
}
