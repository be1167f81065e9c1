package releasedir

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/build/releasedir/verify"
	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/release"
)

var now = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func background(t *testing.T) context.Context {
	return progress.NewContext(t.Context(), progress.New(io.Discard))
}

func keys(t *testing.T) *signing.Keys {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := signing.Init(dir, 2, 1, now); err != nil {
		t.Fatal(err)
	}
	k, err := signing.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// program is something like code: pieces of which some recur, and an address
// every few bytes that base moves.
func program(size, base int) []byte {
	r, out := rand.New(rand.NewPCG(1, 2)), make([]byte, 0, size)
	for len(out) < size {
		for range 5 + r.IntN(40) {
			out = append(out, byte(r.Uint32()))
		}
		at := base + r.IntN(size)
		out = append(out, byte(at), byte(at>>8), byte(at>>16), byte(at>>24))
	}
	return out[:size]
}

// version returns the options of a synthetic release: a megabyte that never
// changes, a program that does, zeros, and what stands for the tree.
func version(t *testing.T, k *signing.Keys, dir, name string, base int) Options {
	t.Helper()
	const blocks = (1<<20 + 2<<20 + 1<<20) / blockSize
	noise := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{7}).Read(noise)
	root := append(noise, bytes.Repeat([]byte{9}, base%4096)...)
	root = append(root, program(2<<20-base%4096, base)...)
	root = append(root, make([]byte, 1<<20)...)
	root = append(root, []byte(name+strings.Repeat("s", blockSize-len(name)))...)
	root = append(root, program(2*blockSize, base)...)
	boot := append(bytes.Repeat([]byte("fat"), 512*100), program(512*300, 5)...)
	o := Options{
		Dir: dir, Target: "amd64", Info: release.Info{Version: name, Kubernetes: "v1.36.4", Kernel: "6.12.1", BuildTime: 1767225600},
		Boot: filepath.Join(t.TempDir(), "boot"), Root: filepath.Join(t.TempDir(), "root"),
		RootHash: strings.Repeat("5a", 32), RootBlocks: blocks, Channel: "stable", Keys: k, Now: now,
	}
	for path, data := range map[string][]byte{o.Boot: boot, o.Root: root} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func write(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Write(background(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tree returns all files below dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestTwoReleases(t *testing.T) {
	k, dir := keys(t), t.TempDir()
	first := write(t, version(t, k, dir, "1.0.0", 100))
	if len(first.Updates) != 0 || first.Full < 2<<20 || first.Full > first.Size {
		t.Errorf("first release: %+v", first)
	}
	o := version(t, k, dir, "1.1.0", 1300)
	o.Floor = "1.0.0"
	second := write(t, o)
	if len(second.Updates) != 1 {
		t.Fatalf("updates: %+v; want one", second.Updates)
	}
	u := second.Updates[0]
	if u.From != "1.0.0" || u.Deltas > u.Chunks/2 || u.Chunks > second.Full*4/5 || u.Reused < 1<<20 {
		t.Errorf("update of %d: %+v", second.Full, u)
	}
	if !strings.Contains(second.String(), "update from 1.0.0") {
		t.Errorf("report:\n%s", second)
	}
	r, err := verify.Directory(t.Context(), dir, k.Anchor(), now)
	if err != nil {
		t.Fatal(err)
	}
	want := []verify.Channel{{Target: "amd64", Name: "stable", Channel: release.Channel{Version: "1.1.0", Floor: "1.0.0"}}}
	if diff := cmp.Diff(want, r.Channels); diff != "" {
		t.Errorf("channels (-want +got):\n%s", diff)
	}
	if len(r.Releases) != 2 || len(r.Releases[1].Updates) != 1 || !r.Releases[1].Updates[0].Checked || r.Releases[1].Full != second.Full {
		t.Errorf("releases: %+v", r.Releases)
	}
}

func TestBaseElsewhere(t *testing.T) {
	k, old, dir := keys(t), t.TempDir(), t.TempDir()
	write(t, version(t, k, old, "1.0.0", 100))
	o := version(t, k, dir, "1.1.0", 1300)
	o.Bases = []string{old, old}
	if r := write(t, o); len(r.Updates) != 1 || r.Updates[0].Deltas > r.Updates[0].Chunks/2 {
		t.Errorf("updates: %+v", r.Updates)
	}
	r, err := verify.Directory(t.Context(), dir, k.Anchor(), now)
	if err != nil || len(r.Releases) != 1 || len(r.Releases[0].Updates) != 1 || r.Releases[0].Updates[0].Checked {
		t.Errorf("%+v, %v", r, err)
	}
	o.Bases = []string{t.TempDir()}
	if _, err := Write(background(t), o); err == nil || !strings.Contains(err.Error(), "no release") {
		t.Errorf("an empty base: %v", err)
	}
}

func TestSameBytes(t *testing.T) {
	k := keys(t)
	var trees []map[string]string
	for range 2 {
		dir := t.TempDir()
		write(t, version(t, k, dir, "1.0.0", 100))
		write(t, version(t, k, dir, "1.1.0", 1300))
		trees = append(trees, tree(t, dir))
	}
	if diff := cmp.Diff(trees[0], trees[1]); diff != "" {
		t.Error("the same inputs gave other files")
	}
}

func TestReplace(t *testing.T) {
	k, dir := keys(t), t.TempDir()
	write(t, version(t, k, dir, "1.0.0-dev", 100))
	chunks := func() int {
		files, err := filepath.Glob(filepath.Join(dir, "chunks", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	before := chunks()
	write(t, version(t, k, dir, "1.0.0-dev", 1300))
	if n := chunks(); n > before+8 {
		t.Errorf("%d chunks; %d before the version was replaced", n, before)
	}
	write(t, version(t, k, dir, "1.0.0", 100))
	if _, err := Write(background(t), version(t, k, dir, "1.0.0", 1300)); err == nil || !strings.Contains(err.Error(), "new version") {
		t.Errorf("version 1.0.0 with other images: %v", err)
	}
	if r, err := verify.Directory(t.Context(), dir, k.Anchor(), now); err != nil || len(r.Releases) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	lower := version(t, k, dir, "0.9.0", 7)
	if _, err := Write(background(t), lower); err == nil || !strings.Contains(err.Error(), "only go up") {
		t.Errorf("an older version in the channel: %v", err)
	}
	lower.Channel = "lts"
	lower.Floor = "0.8.0"
	write(t, lower)
	lower = version(t, k, dir, "0.9.1", 7)
	lower.Channel, lower.Floor = "lts", "0.7.0"
	if _, err := Write(background(t), lower); err == nil || !strings.Contains(err.Error(), "never goes down") {
		t.Errorf("a lower floor: %v", err)
	}
}

// TestVerifyFinds damages a directory in each way that there is.
func TestVerifyFinds(t *testing.T) {
	k, dir := keys(t), t.TempDir()
	write(t, version(t, k, dir, "1.0.0", 100))
	write(t, version(t, k, dir, "1.1.0", 1300))
	whole := tree(t, dir)
	seen := map[string]int{} // of chunks and deltas, three stand for all
	for path := range whole {
		if ext := filepath.Ext(path); ext == ".cacnk" || ext == ".delta" {
			if seen[ext]++; seen[ext] > 3 {
				delete(whole, path)
			}
		}
	}
	for name, damage := range map[string]func([]byte) []byte{
		"shortened": func(b []byte) []byte { return b[:len(b)-1] },
		"altered":   func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"gone":      func([]byte) []byte { return nil },
	} {
		for path, content := range whole {
			if past := strings.HasPrefix(path, "metadata/") && !strings.Contains(path, "timestamp") && !strings.Contains(path, "root"); past {
				continue // of the first release, which nothing reads any more
			}
			if strings.HasSuffix(path, "1.root.json") && name != "altered" {
				continue // the anchor is elsewhere
			}
			damageOne(t, dir, path, damage([]byte(content)), func() {
				_, err := verify.Directory(t.Context(), dir, k.Anchor(), now)
				if err == nil && !strings.Contains(path, "root.json") {
					t.Errorf("%s %s: no error", path, name)
				}
			})
		}
	}
	if _, err := verify.Directory(t.Context(), dir, keys(t).Anchor(), now); err == nil {
		t.Error("other keys: no error")
	}
	if _, err := verify.Directory(t.Context(), dir, k.Anchor(), now.AddDate(1, 0, 0)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a year later: %v", err)
	}
}

// damageOne calls f while the file at path has other content, or is gone.
func damageOne(t *testing.T, dir, path string, content []byte, f func()) {
	t.Helper()
	file := filepath.Join(dir, path)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if content == nil {
		err = os.Remove(file)
	} else {
		err = os.WriteFile(file, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.WriteFile(file, whole, 0o644); err != nil {
		t.Fatal(err)
	}
}
