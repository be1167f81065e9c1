package signing

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/build/cache"
)

var now = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

// keys makes a folder of keys and moves root's away.
func keys(t *testing.T, roots, threshold int) (dir string, rootKeys []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "keys")
	if err := Init(dir, roots, threshold, now); err != nil {
		t.Fatal(err)
	}
	safe := t.TempDir()
	for n := range roots {
		file := keyFile(safe, metadata.ROOT, int64(n+1))
		if err := os.Rename(keyFile(dir, metadata.ROOT, int64(n+1)), file); err != nil {
			t.Fatal(err)
		}
		rootKeys = append(rootKeys, file)
	}
	return dir, rootKeys
}

func open(t *testing.T, dir string) *Keys {
	t.Helper()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// client reads a published directory as a machine with that anchor does.
func client(t *testing.T, dir string, anchor []byte, at time.Time) (*trustedmetadata.TrustedMetadata, error) {
	t.Helper()
	trusted, err := trustedmetadata.New(anchor)
	if err != nil {
		t.Fatal(err)
	}
	trusted.RefTime = at
	for {
		data, err := os.ReadFile(rootFile(filepath.Join(dir, "metadata"), trusted.Root.Signed.Version+1))
		if err != nil {
			break
		}
		if _, err := trusted.UpdateRoot(data); err != nil {
			return nil, err
		}
	}
	read := func(pattern string) []byte {
		files, err := filepath.Glob(filepath.Join(dir, "metadata", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		data, err := os.ReadFile(files[len(files)-1])
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if _, err := trusted.UpdateTimestamp(read("timestamp.json")); err != nil {
		return nil, err
	}
	if _, err := trusted.UpdateSnapshot(read("*.snapshot.json"), false); err != nil {
		return nil, err
	}
	_, err = trusted.UpdateTargets(read("*.targets.json"))
	return trusted, err
}

func TestPublish(t *testing.T) {
	source, _ := keys(t, 3, 2)
	k, dir := open(t, source), t.TempDir()
	if err := k.Publish(dir, map[string][]byte{"amd64/a.json": []byte("one"), "amd64/b.json": []byte("b")}, now); err != nil {
		t.Fatal(err)
	}
	// The second at the same time as the first, and by a clock that stands in
	// the past.
	for _, at := range []time.Time{now, now.Add(-time.Hour)} {
		if err := k.Publish(dir, map[string][]byte{"amd64/a.json": []byte("two"), "amd64/b.json": nil}, at); err != nil {
			t.Fatal(err)
		}
	}
	trusted, err := client(t, dir, k.Anchor(), now)
	if err != nil {
		t.Fatal(err)
	}
	targets := trusted.Targets[metadata.TARGETS]
	if v := targets.Signed.Version; v != now.Unix()+2 {
		t.Errorf("version %d; want %d", v, now.Unix()+2)
	}
	if data, err := ReadTarget(dir, targets, "amd64/a.json"); string(data) != "two" || err != nil {
		t.Errorf("a.json = %q, %v", data, err)
	}
	if data, err := ReadTarget(dir, targets, "amd64/b.json"); data != nil || err != nil {
		t.Errorf("b.json = %q, %v; want nothing", data, err)
	}
	if _, err := client(t, dir, k.Anchor(), now.Add(timestampLife+time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("half a year later: %v; want expired", err)
	}
	other, _ := keys(t, 1, 1)
	if _, err := client(t, dir, open(t, other).Anchor(), now); err == nil {
		t.Error("a machine with another anchor believed it")
	}
}

func TestRotateOnline(t *testing.T) {
	dir, roots := keys(t, 3, 2)
	before, published := open(t, dir), t.TempDir()
	for _, role := range online {
		if err := Rotate(dir, role, "", "", now); err != nil {
			t.Fatal(err)
		}
	}
	if err := Rotate(dir, metadata.TARGETS, "", "", now); err == nil {
		t.Error("the same key was rotated twice before it was signed")
	}
	if err := open(t, dir).Publish(published, nil, now); err != nil {
		t.Errorf("release before the change is signed: %v", err)
	}
	missing, err := SignRoot(dir, roots[0])
	if err != nil || missing == nil || !strings.Contains(missing.Error(), "1 of 2") {
		t.Fatalf("first signature: %v, %v", missing, err)
	}
	if missing, err = SignRoot(dir, roots[0]); err != nil || missing == nil {
		t.Fatalf("the same key again: %v, %v", missing, err)
	}
	if missing, err = SignRoot(dir, roots[2]); err != nil || missing != nil {
		t.Fatalf("second signature: %v, %v", missing, err)
	}
	after := open(t, dir)
	if err := after.Publish(published, nil, now); err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]*Keys{"old": before, "new": after} {
		if _, err := client(t, published, k.Anchor(), now); err != nil {
			t.Errorf("machine with the %s anchor: %v", name, err)
		}
	}
	// What the old keys sign counts no more.
	if err := before.Publish(published, nil, now); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, published, before.Anchor(), now); err == nil {
		t.Error("keys that were taken back still count")
	}
}

func TestRotateRoot(t *testing.T) {
	dir, roots := keys(t, 2, 2)
	made := filepath.Join(t.TempDir(), "root-3.key")
	before := open(t, dir)
	if err := Rotate(dir, metadata.ROOT, roots[0], made, now); err != nil {
		t.Fatal(err)
	}
	stranger, others := keys(t, 1, 1)
	if _, err := SignRoot(dir, others[0]); err == nil {
		t.Error("a stranger's key signed")
	}
	// The new version is signed by its own keys before the old ones agree.
	missing, err := SignRoot(dir, roots[1], made)
	if err != nil || missing == nil || !strings.Contains(missing.Error(), "the version before") {
		t.Fatalf("without the key that goes: %v, %v", missing, err)
	}
	if missing, err = SignRoot(dir, roots[0]); err != nil || missing != nil {
		t.Fatalf("with it: %v, %v", missing, err)
	}
	published := t.TempDir()
	if err := open(t, dir).Publish(published, nil, now); err != nil {
		t.Fatal(err)
	}
	if trusted, err := client(t, published, before.Anchor(), now); err != nil || trusted.Root.Signed.Version != 2 {
		t.Errorf("machine with the old anchor: %v", err)
	}
	if _, err := SignRoot(dir, roots[0]); err == nil {
		t.Error("signed where nothing was prepared")
	}
	if err := Renew(dir, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if missing, err := SignRoot(dir, roots[1], made); err != nil || missing != nil {
		t.Errorf("renewal by the keys that are left: %v, %v", missing, err)
	}
	if _, err := SignRoot(stranger, roots...); err == nil {
		t.Error("signed where nothing was prepared")
	}
}

func TestRefuses(t *testing.T) {
	if err := Init(t.TempDir(), 2, 3, now); err == nil {
		t.Error("a threshold that no one reaches")
	}
	dir, _ := keys(t, 1, 1)
	if err := Init(dir, 1, 1, now); err == nil {
		t.Error("keys were made over others")
	}
	other, _ := keys(t, 1, 1)
	data, err := os.ReadFile(keyFile(other, metadata.TARGETS, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile(dir, metadata.TARGETS, 1), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("opened with a key that root does not name")
	}
	if err := Rotate(other, "mirrors", "", "", now); err == nil {
		t.Error("rotated a role that is none")
	}
	root, err := os.ReadFile(rootFile(other, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rootFile(other, 1), []byte(strings.Replace(string(root), "2036", "2096", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other); err == nil {
		t.Error("opened with root metadata that were changed")
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("opened an empty folder")
	}
}

func TestDevelopment(t *testing.T) {
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, err := Development(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Development(context.Background(), c)
	if err != nil || string(first.Anchor()) != string(second.Anchor()) {
		t.Errorf("the second build has other keys (%v)", err)
	}
	err = filepath.WalkDir(c.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".key" {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
