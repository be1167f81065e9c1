package signing

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Publish signs the state of a release directory in which target files were
// added, changed or, with nil, taken away; files maps their paths to their
// contents. All other targets stay. Metadata become valid with timestamp.json,
// which is written last: a cut before leaves the directory as it was, and files
// that nothing names.
func (k *Keys) Publish(dir string, files map[string][]byte, now time.Time) error {
	targets, err := ReadTargets(dir)
	if err != nil {
		return err
	}
	version := now.Unix()
	if targets == nil {
		targets = metadata.Targets(expiry(now, targetsLife))
	} else {
		version = max(version, targets.Signed.Version+1)
	}
	targets.Signed.Expires = expiry(now, targetsLife)
	for name, data := range files {
		if data == nil {
			delete(targets.Signed.Targets, name)
			continue
		}
		sum := sha256.Sum256(data)
		targets.Signed.Targets[name] = &metadata.TargetFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
		if err := write(filepath.Join(dir, "targets", filepath.FromSlash(HashedPath(name, sum[:]))), data); err != nil {
			return err
		}
	}
	for i, root := range k.roots {
		if err := write(filepath.Join(dir, "metadata", fmt.Sprintf("%d.root.json", i+1)), root); err != nil {
			return err
		}
	}
	return k.sign(dir, targets, version, now)
}

// sign writes the three online roles' metadata, all of one version. Versions
// come from the clock, so that a directory that is made anew, from nothing, is
// newer than what machines have seen; within a directory they rise in any case.
func (k *Keys) sign(dir string, targets *metadata.Metadata[metadata.TargetsType], version int64, now time.Time) error {
	targets.Signed.Version = version
	targets.ClearSignatures()
	text, err := signed(targets, k, metadata.TARGETS)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "metadata", fmt.Sprintf("%d.targets.json", version)), text); err != nil {
		return err
	}
	snapshot := metadata.Snapshot(expiry(now, snapshotLife))
	snapshot.Signed.Version = version
	snapshot.Signed.Meta["targets.json"] = metaFile(version, text)
	if text, err = signed(snapshot, k, metadata.SNAPSHOT); err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "metadata", fmt.Sprintf("%d.snapshot.json", version)), text); err != nil {
		return err
	}
	timestamp := metadata.Timestamp(expiry(now, timestampLife))
	timestamp.Signed.Version = version
	timestamp.Signed.Meta["snapshot.json"] = metaFile(version, text)
	if text, err = signed(timestamp, k, metadata.TIMESTAMP); err != nil {
		return err
	}
	return write(filepath.Join(dir, "metadata", "timestamp.json"), text)
}

func signed[T metadata.Roles](m *metadata.Metadata[T], k *Keys, role string) ([]byte, error) {
	if _, err := m.Sign(k.signers[role]); err != nil {
		return nil, fmt.Errorf("sign %s: %w", role, err)
	}
	return m.ToBytes(true)
}

func metaFile(version int64, data []byte) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	return &metadata.MetaFiles{Version: version, Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
}

// write replaces file unless it holds data already.
func write(file string, data []byte) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(file, data, 0o644)
}

// HashedPath is where a repository with consistent snapshots keeps a target,
// below targets/.
func HashedPath(name string, sha256 []byte) string {
	return path.Join(path.Dir(name), fmt.Sprintf("%x.%s", sha256, path.Base(name)))
}

// ReadTargets returns the targets metadata of a release directory that its
// timestamp leads to, or nil where there is none. It checks no signatures.
func ReadTargets(dir string) (*metadata.Metadata[metadata.TargetsType], error) {
	fail := func(err error) (*metadata.Metadata[metadata.TargetsType], error) {
		return nil, fmt.Errorf("read metadata of %s: %w", dir, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "metadata", "timestamp.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return fail(err)
	}
	timestamp, err := metadata.Timestamp().FromBytes(data)
	if err != nil {
		return fail(err)
	}
	meta := timestamp.Signed.Meta["snapshot.json"]
	if meta == nil {
		return fail(errors.New("timestamp names no snapshot"))
	}
	if data, err = os.ReadFile(filepath.Join(dir, "metadata", fmt.Sprintf("%d.snapshot.json", meta.Version))); err != nil {
		return fail(err)
	}
	snapshot, err := metadata.Snapshot().FromBytes(data)
	if err != nil {
		return fail(err)
	}
	if meta = snapshot.Signed.Meta["targets.json"]; meta == nil {
		return fail(errors.New("snapshot names no targets"))
	}
	if data, err = os.ReadFile(filepath.Join(dir, "metadata", fmt.Sprintf("%d.targets.json", meta.Version))); err != nil {
		return fail(err)
	}
	targets, err := metadata.Targets().FromBytes(data)
	if err != nil {
		return fail(err)
	}
	return targets, nil
}

// ReadTarget returns the content of a target, nil when the directory has no
// such target. The content is what targets says.
func ReadTarget(dir string, targets *metadata.Metadata[metadata.TargetsType], name string) ([]byte, error) {
	if targets == nil || targets.Signed.Targets[name] == nil {
		return nil, nil
	}
	t := targets.Signed.Targets[name]
	data, err := os.ReadFile(filepath.Join(dir, "targets", filepath.FromSlash(HashedPath(name, t.Hashes["sha256"]))))
	if err != nil {
		return nil, fmt.Errorf("read target %s: %w", name, err)
	}
	if err := t.VerifyLengthHashes(data); err != nil {
		return nil, fmt.Errorf("read target %s: %w", name, err)
	}
	return data, nil
}
