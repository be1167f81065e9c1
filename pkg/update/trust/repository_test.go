package trust_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/release"
)

// today is when the tests happen.
var today = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// repository is a release directory on a web server, with every key at hand.
type repository struct {
	t         testing.TB
	keys      map[string][]ed25519.PrivateKey // by role
	root      *metadata.Metadata[metadata.RootType]
	targets   *metadata.Metadata[metadata.TargetsType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	timestamp *metadata.Metadata[metadata.TimestampType]
	hashes    bool // timestamp and snapshot tell length and hash of what they list

	mu       sync.Mutex
	files    map[string][]byte           // below the directory
	override map[string]http.HandlerFunc // by path
	url      string
}

var roles = []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP}

// newRepository has one version of amd64 in channel stable, two keys for root, of which both must sign, and is published.
func newRepository(t testing.TB) *repository {
	r := &repository{t: t, keys: map[string][]ed25519.PrivateKey{}, hashes: true, files: map[string][]byte{}, override: map[string]http.HandlerFunc{}}
	r.root = metadata.Root(today.Add(3650 * day))
	r.targets = metadata.Targets(today.Add(90 * day))
	r.snapshot = metadata.Snapshot(today.Add(60 * day))
	r.timestamp = metadata.Timestamp(today.Add(30 * day))
	r.root.Signed.Version, r.targets.Signed.Version, r.snapshot.Signed.Version, r.timestamp.Signed.Version = 0, 0, 0, 0
	for _, role := range append([]string{metadata.ROOT}, roles...) {
		r.addKey(role)
	}
	r.root.Signed.Roles[metadata.ROOT].Threshold = 2
	r.publishRoot(r.keys[metadata.ROOT]...)
	r.release("0.1.0", "")
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *repository) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := strings.TrimPrefix(req.URL.Path, "/")
	r.mu.Lock()
	data, ok := r.files[name]
	override := r.override[name]
	r.mu.Unlock()
	switch {
	case override != nil:
		override(w, req)
	case !ok:
		http.NotFound(w, req)
	default:
		http.ServeContent(w, req, name, time.Time{}, bytes.NewReader(data))
	}
}

func (r *repository) put(name string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[name] = data
}

func (r *repository) get(name string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, ok := r.files[name]
	if !ok {
		r.t.Fatalf("the repository has no %s", name)
	}
	return data
}

// copyFiles is the directory as it is now; show puts it back.
func (r *repository) copyFiles() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.files)
}

func (r *repository) show(files map[string][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files, r.override = maps.Clone(files), map[string]http.HandlerFunc{}
}

func (r *repository) replace(name string, serve http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.override[name] = serve
}

func (r *repository) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *repository) addKey(role string) {
	public, private, err := ed25519.GenerateKey(nil)
	r.must(err)
	key, err := metadata.KeyFromPublicKey(public)
	r.must(err)
	r.must(r.root.Signed.AddKey(key, role))
	r.keys[role] = append(r.keys[role], private)
}

// newKeys replaces the keys of role, and returns the old ones.
func (r *repository) newKeys(role string) []ed25519.PrivateKey {
	old := r.keys[role]
	for _, k := range old {
		key, err := metadata.KeyFromPublicKey(k.Public())
		r.must(err)
		id, err := key.ID()
		r.must(err)
		r.must(r.root.Signed.RevokeKey(id, role))
	}
	r.keys[role] = nil
	for range old {
		r.addKey(role)
	}
	return old
}

// sign returns the file of m with the signatures of keys.
func sign[T metadata.Roles](r *repository, m *metadata.Metadata[T], keys ...ed25519.PrivateKey) []byte {
	m.ClearSignatures()
	for _, k := range keys {
		signer, err := signature.LoadED25519Signer(k)
		r.must(err)
		_, err = m.Sign(signer)
		r.must(err)
	}
	data, err := m.ToBytes(true)
	r.must(err)
	return data
}

func (r *repository) publishRoot(keys ...ed25519.PrivateKey) {
	r.root.Signed.Version++
	r.put(fmt.Sprintf("metadata/%d.root.json", r.root.Signed.Version), sign(r, r.root, keys...))
}

// rotate gives every role new keys, and publishes everything.
func (r *repository) rotate() {
	old := r.newKeys(metadata.ROOT)
	for _, role := range roles[1:] {
		r.newKeys(role)
	}
	r.publishRoot(slices.Concat(old, r.keys[metadata.ROOT])...)
	r.publish()
}

func (r *repository) anchor() []byte { return r.get("metadata/1.root.json") }

// publish writes new versions of targets, snapshot and timestamp.
func (r *repository) publish() {
	r.publishTargets(r.keys[metadata.TARGETS]...)
	r.publishSnapshot(r.keys[metadata.SNAPSHOT]...)
	r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
}

func (r *repository) publishTargets(keys ...ed25519.PrivateKey) {
	r.targets.Signed.Version++
	data := sign(r, r.targets, keys...)
	r.put(fmt.Sprintf("metadata/%d.targets.json", r.targets.Signed.Version), data)
	r.snapshot.Signed.Meta["targets.json"] = r.describe(r.targets.Signed.Version, data)
}

func (r *repository) publishSnapshot(keys ...ed25519.PrivateKey) {
	r.snapshot.Signed.Version++
	data := sign(r, r.snapshot, keys...)
	r.put(fmt.Sprintf("metadata/%d.snapshot.json", r.snapshot.Signed.Version), data)
	r.timestamp.Signed.Meta["snapshot.json"] = r.describe(r.snapshot.Signed.Version, data)
}

func (r *repository) publishTimestamp(keys ...ed25519.PrivateKey) {
	r.timestamp.Signed.Version++
	r.put("metadata/timestamp.json", sign(r, r.timestamp, keys...))
}

func (r *repository) describe(version int64, data []byte) *metadata.MetaFiles {
	m := metadata.MetaFile(version)
	if r.hashes {
		f, err := metadata.TargetFile().FromBytes("", data)
		r.must(err)
		m.Length, m.Hashes = f.Length, f.Hashes
	}
	return m
}

// add puts a target into the directory, to be published.
func (r *repository) add(name string, data []byte) {
	f, err := metadata.TargetFile().FromBytes(name, data)
	r.must(err)
	r.targets.Signed.Targets[name] = f
	r.put(r.place(name), data)
}

// place is where the target's file lies.
func (r *repository) place(name string) string {
	dir, base := path.Split(name)
	return "targets/" + dir + hex.EncodeToString(r.targets.Signed.Targets[name].Hashes["sha256"]) + "." + base
}

// release publishes a version of amd64 as the newest of stable.
func (r *repository) release(version, floor string) {
	m, err := manifest("amd64", version).Encode()
	r.must(err)
	r.add(release.ManifestPath("amd64", version), m)
	r.channel("stable", version, floor)
	r.publish()
}

func (r *repository) channel(name, version, floor string) {
	c, err := release.Channel{Version: version, Floor: floor}.Encode()
	r.must(err)
	r.add(release.ChannelPath("amd64", name), c)
}

func manifest(target, version string) release.Manifest {
	return release.Manifest{
		Info:   release.Info{Version: version, Kubernetes: "v1.36.4", Kernel: "6.12.1", BuildTime: today.Add(-day).Unix()},
		Target: target, Config: release.ConfigSchema,
		Images: []release.Image{
			{Name: "boot", Size: 512, Data: 512, SHA256: strings.Repeat("0a", 32), Index: release.IndexPath(target, version, "boot")},
			{Name: "root", Size: 8192, Data: 4096, SHA256: strings.Repeat("0b", 32), Index: release.IndexPath(target, version, "root"), RootHash: strings.Repeat("0c", 32)},
		},
	}
}
