package update

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

// sign makes a release directory for The Update Framework out of w's files and returns its anchor.
func (w *world) sign(dir string) (anchor []byte) {
	w.t.Helper()
	for file, encode := range map[string]func() ([]byte, error){
		release.ManifestPath("amd64", next.Version): w.manifest.Encode, release.ChannelPath("amd64", "stable"): w.channel.Encode,
	} {
		data, err := encode()
		check(err)
		w.targets[file] = data
	}
	_, key, err := ed25519.GenerateKey(nil)
	check(err)
	public, err := metadata.KeyFromPublicKey(key.Public())
	check(err)
	end := noon.Add(time.Hour)
	root, targets, snapshot, timestamp := metadata.Root(end), metadata.Targets(end), metadata.Snapshot(end), metadata.Timestamp(end)
	root.Signed.ConsistentSnapshot = true
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		check(root.Signed.AddKey(public, role))
	}
	for file, data := range w.targets {
		sum := sha256.Sum256(data)
		targets.Signed.Targets[file] = &metadata.TargetFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}, Path: file}
		d, base := path.Split(file)
		put(filepath.Join(dir, "targets", d, hex.EncodeToString(sum[:])+"."+base), data)
	}
	signer, err := signature.LoadSigner(key, crypto.Hash(0))
	check(err)
	check(errors.Join(signed(root, signer), signed(targets, signer), signed(snapshot, signer), signed(timestamp, signer)))
	for name, m := range map[string]interface{ ToBytes(bool) ([]byte, error) }{
		"1.root.json": root, "1.targets.json": targets, "1.snapshot.json": snapshot, "timestamp.json": timestamp,
	} {
		data, err := m.ToBytes(false)
		check(err)
		put(filepath.Join(dir, "metadata", name), data)
	}
	anchor, err = root.ToBytes(false)
	check(err)
	return anchor
}

func signed(m interface {
	Sign(signature.Signer) (*metadata.Signature, error)
}, s signature.Signer) error {
	_, err := m.Sign(s)
	return err
}

func put(file string, data []byte) {
	check(os.MkdirAll(filepath.Dir(file), 0o755))
	check(os.WriteFile(file, data, 0o644))
}

// TestSigned upgrades from a signed directory as it lies on a USB stick.
func TestSigned(t *testing.T) {
	w := newWorld(t)
	before := clone(w.disk.parts)
	dir := t.TempDir()
	check(os.Symlink(filepath.Join(w.dir, "chunks"), filepath.Join(dir, "chunks")))
	src, err := source.Open(source.Options{URL: "file://" + dir, Log: w.o.Log})
	if err != nil {
		t.Fatal(err)
	}
	anchor := filepath.Join(dir, "anchor.json")
	put(anchor, w.sign(dir))
	clock := func() (time.Time, bool) { return noon, true }
	client, err := trust.Open(trust.Options{Source: src, Dir: t.TempDir(), Anchor: anchor, Built: noon.Add(-time.Hour), Clock: clock, Log: w.o.Log})
	if err != nil {
		t.Fatal(err)
	}
	s := Signed{client, "amd64", "stable"}
	w.o.Trust, w.o.Chunks = s, Files{src}
	if _, err := New(w.o).Run(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	w.wantWhole(before)
	if _, err := s.Target(t.Context(), chunk.DeltasPath(w.manifest.Images[0].Index, "1.0.0"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not listed: %v", err)
	}
	for file := range files(t, filepath.Join(dir, "targets", "amd64", next.Version)) {
		if filepath.Ext(file) == ".caibx" {
			check(os.WriteFile(filepath.Join(dir, "targets", "amd64", next.Version, file), []byte("x"), 0o644))
		}
	}
	if _, err := s.Target(t.Context(), w.manifest.Images[0].Index, chunk.MaxIndex); !errors.Is(err, trust.ErrAltered) {
		t.Errorf("an altered file: %v", err)
	}
}
