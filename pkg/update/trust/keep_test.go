package trust_test

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

func TestRotation(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	m.sees("0.1.0")
	oldKeys := maps.Clone(r.keys)
	r.rotate()
	m.sees("0.1.0")
	for range 3 {
		r.rotate()
	}
	r.release("0.2.0", "")
	m.sees("0.2.0")
	fresh := newMachine(t, r)
	fresh.sees("0.2.0")
	want := []string{"2.root.json", "3.root.json", "4.root.json", "5.root.json", "snapshot.json", "targets.json", "timestamp.json"}
	for _, m := range []*machine{m, fresh} {
		if diff := cmp.Diff(want, m.trustedNames()); diff != "" {
			t.Error(diff)
		}
	}
	// Who has the first keys, which were taken back, makes another second root with them, and all that follows.
	good := r.copyFiles()
	root, err := metadata.Root().FromBytes(r.anchor())
	r.must(err)
	r.root, r.keys = root, oldKeys
	files := r.copyFiles()
	for _, n := range []string{"2", "3", "4", "5"} {
		delete(files, "metadata/"+n+".root.json")
	}
	r.show(files)
	r.publishRoot(r.keys[metadata.ROOT]...)
	r.release("0.6.6", "")
	m.refuses(trust.ErrSignature, "timestamp.json")
	r.show(good)
	m.sees("0.2.0")
}

func (m *machine) trustedNames() []string {
	var names []string
	for name := range m.kept() {
		if dir, base := filepath.Split(name); dir == "trusted/" {
			names = append(names, base)
		}
	}
	slices.Sort(names)
	return names
}

// TestNewerAnchor: an upgraded machine carries a newer anchor, and drops the roots before it.
func TestNewerAnchor(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	for range 3 {
		r.rotate()
	}
	m.sees("0.1.0")
	if err := os.WriteFile(m.anchor, r.get("metadata/3.root.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.sees("0.1.0")
	if diff := cmp.Diff([]string{"4.root.json", "snapshot.json", "targets.json", "timestamp.json"}, m.trustedNames()); diff != "" {
		t.Error(diff)
	}
	// The anchor of another maker: nothing of what is kept counts.
	other := newRepository(t)
	if err := os.WriteFile(m.anchor, other.anchor(), 0o644); err != nil {
		t.Fatal(err)
	}
	m.refuses(trust.ErrSignature, "2.root.json")
	m.url = other.url
	m.sees("0.1.0")
	if diff := cmp.Diff([]string{"snapshot.json", "targets.json", "timestamp.json"}, m.trustedNames()); diff != "" {
		t.Error(diff)
	}
}

// TestFastForward: a thief of the timestamp's key issues the highest versions; taking the keys back heals.
func TestFastForward(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	thief := maps.Clone(r.keys)
	timestamp, snapshot := r.timestamp.Signed.Version, r.snapshot.Signed.Version
	r.timestamp.Signed.Version, r.snapshot.Signed.Version = 1<<40, 1<<40
	r.publish()
	m.sees("0.1.0")
	r.timestamp.Signed.Version, r.snapshot.Signed.Version = timestamp+1, snapshot+1
	r.release("0.2.0", "")
	m.refuses(trust.ErrRollback, "timestamp.json")
	for _, role := range []string{metadata.TIMESTAMP, metadata.SNAPSHOT} {
		r.newKeys(role)
	}
	r.publishRoot(r.keys[metadata.ROOT]...)
	r.release("0.3.0", "")
	m.sees("0.3.0")
	r.publishTimestamp(thief[metadata.TIMESTAMP]...)
	m.refuses(trust.ErrSignature, "timestamp.json")
}

// TestPowerCuts leaves every state in which a cut, and a damaged disk, can leave the machine between a state that it knew
// and a newer one with other keys and a higher floor.
func TestPowerCuts(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	m.sees("0.1.0")
	old, oldFiles := m.kept(), r.copyFiles()
	r.rotate()
	r.rotate()
	r.release("0.2.0", "0.2.0")
	m.now = today.Add(day)
	m.sees("0.2.0")
	whole := m.kept()
	order := []string{
		"trusted/2.root.json", "trusted/3.root.json", "newest-time", "trusted/timestamp.json", "trusted/snapshot.json", "trusted/targets.json", "floor",
	}
	for name := range whole {
		if !slices.Contains(order, name) {
			t.Fatalf("%s is written, and not in the order", name)
		}
	}
	for n := range len(order) + 1 {
		files := maps.Clone(old)
		for _, name := range order[:n] {
			files[name] = whole[name]
		}
		cases := map[string]map[string]string{"cut": files}
		temporary := maps.Clone(files)
		temporary["trusted/.tmp-123"] = "half"
		cases["temporary file"] = temporary
		for _, bad := range []string{"", "\x00\x00\x00", "half"} {
			if n == len(order) {
				break
			}
			torn := maps.Clone(files)
			torn[order[n]] = bad
			if bad == "half" {
				torn[order[n]] = whole[order[n]][:len(whole[order[n]])/2]
			}
			cases["damaged: "+bad] = torn
		}
		for name, files := range cases {
			m.keep(files)
			m.sees("0.2.0")
			if diff := cmp.Diff(whole, m.kept()); diff != "" {
				t.Errorf("%s, %d written:\n%s", name, n, diff)
			}
		}
		if n > 0 { // the new keys, or what came after them, keep the old state out
			m.keep(files)
			good := r.copyFiles()
			r.show(oldFiles)
			if got, err := look(t.Context(), m.start()); err == nil {
				t.Errorf("%d written: the old directory is taken again: %+v", n, got)
			}
			r.show(good)
			m.sees("0.2.0")
		}
	}
}

func TestFloor(t *testing.T) {
	r := newRepository(t)
	r.release("0.2.0", "")
	old := r.copyFiles()
	r.channel("beta", "0.6.0-rc.1", "0.3.0")
	r.release("0.5.0", "0.4.0")
	m := newMachine(t, r)
	m.sees("0.5.0")
	c := m.start()
	if got := c.Floor(); got != "0.4.0" {
		t.Errorf("Floor = %q after a restart; want 0.4.0", got)
	}
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Manifest(t.Context(), "amd64", "0.2.0"); !errors.Is(err, trust.ErrFloor) || !strings.Contains(err.Error(), "takes 0.4.0 or newer") {
		t.Errorf("Manifest below the floor: %v", err)
	}
	if _, err := c.Channel(t.Context(), "amd64", "beta"); err != nil || c.Floor() != "0.4.0" {
		t.Errorf("channel with a lower floor: %v; floor %s", err, c.Floor())
	}
	// The cache is lost; only the floor knows.
	if err := os.RemoveAll(filepath.Join(m.dir, "trusted")); err != nil {
		t.Fatal(err)
	}
	r.show(old)
	m.refuses(trust.ErrFloor, "version 0.2.0")
	c = m.start()
	r.must(c.Refresh(t.Context()))
	if _, err := c.Channel(t.Context(), "amd64", "stable"); !errors.Is(err, trust.ErrFloor) {
		t.Errorf("channel below the floor: %v", err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "floor"), []byte("0.4"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.sees("0.2.0")
}

// TestOldFindingsStayInUse: a refresh that fails does not take away what an earlier one found.
func TestOldFindingsStayInUse(t *testing.T) {
	r := newRepository(t)
	m := newMachine(t, r)
	c := m.start()
	if _, err := c.Channel(t.Context(), "amd64", "stable"); !errors.Is(err, trust.ErrNotRefreshed) {
		t.Errorf("before the first refresh: %v", err)
	}
	if _, err := look(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.replace("metadata/timestamp.json", html)
	if err := c.Refresh(t.Context()); !errors.Is(err, source.ErrWebPage) {
		t.Errorf("error = %v", err)
	}
	if _, err := c.Manifest(t.Context(), "amd64", "0.1.0"); err != nil {
		t.Error(err)
	}
	for _, names := range [][2]string{{"../x", "stable"}, {"amd64", "../stable"}, {"", ""}} {
		if _, err := c.Channel(t.Context(), names[0], names[1]); err == nil {
			t.Errorf("Channel(%q) = nil; want an error", names)
		}
	}
	for _, names := range [][2]string{{"../x", "0.1.0"}, {"amd64", "../0.1.0"}, {"amd64", ""}} {
		if _, err := c.Manifest(t.Context(), names[0], names[1]); err == nil {
			t.Errorf("Manifest(%q) = nil; want an error", names)
		}
	}
}

// TestStoreOfObjects: some servers refuse what is not there.
func TestStoreOfObjects(t *testing.T) {
	r := newRepository(t)
	r.replace("metadata/2.root.json", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "AccessDenied", http.StatusForbidden) })
	newMachine(t, r).sees("0.1.0")
}

// TestStick reads the directory from a folder.
func TestStick(t *testing.T) {
	r := newRepository(t)
	r.rotate()
	dir := t.TempDir()
	for name, data := range r.copyFiles() {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	m := newMachine(t, r)
	m.url = "file://" + dir
	m.sees("0.1.0")
	index := filepath.Join(dir, r.place(release.ManifestPath("amd64", "0.1.0")))
	if err := os.Remove(index); err != nil {
		t.Fatal(err)
	}
	m.refuses(source.ErrNotFound, "was the whole release directory copied?")
	m.url = "file://" + dir + "/gone"
	m.refuses(source.ErrUnavailable, "plugged in")
}

func TestBadAnchor(t *testing.T) {
	r := newRepository(t)
	s, err := source.Open(source.Options{URL: r.url})
	r.must(err)
	public, _, err := ed25519.GenerateKey(nil)
	r.must(err)
	for name, data := range map[string][]byte{
		"missing": nil, "empty": {}, "no root": r.get("metadata/timestamp.json"), "altered": []byte(strings.Replace(string(r.anchor()), "2036", "2037", 1)),
		"a key": public, "null": []byte(`{"signed": {"_type": "root", "roles": {"root": null}}, "signatures": []}`),
	} {
		path := filepath.Join(t.TempDir(), "root.json")
		if data != nil {
			r.must(os.WriteFile(path, data, 0o644))
		}
		_, err := trust.Open(trust.Options{Dir: t.TempDir(), Anchor: path, Source: s})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Open = %v; want an error that names the file", name, err)
		}
	}
}
