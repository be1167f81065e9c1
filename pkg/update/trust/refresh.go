package trust

import (
	"context"
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/update/source"
)

// Sizes in bytes that no metadata of ours come near. A list of targets has about 600 bytes for each version.
const (
	maxRoot      = 256 << 10
	maxTimestamp = 16 << 10
	maxSnapshot  = 256 << 10
	maxTargets   = 4 << 20
	// maxRotations bounds the roots that one Refresh follows.
	maxRotations = 64
)

// refresh is one run of the client's workflow (TUF specification, section 5).
type refresh struct {
	*Client
	ctx context.Context
	set *trustedmetadata.TrustedMetadata
	at  moment
}

func (r *refresh) run() error {
	set, err := trustedmetadata.New(r.root)
	if err != nil {
		return judge("root.json", err)
	}
	r.set = set
	r.at = r.moment()
	r.set.RefTime = r.at.time
	for _, step := range []func() error{r.roots, r.timestamp, r.snapshot, r.targets} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// roots follows the rotation of keys.
func (r *refresh) roots() error {
	for range maxRotations {
		version := r.set.Root.Signed.Version + 1
		file := fmt.Sprintf("%d.root.json", version)
		data, err := r.fetch(file, maxRoot)
		// Stores of objects refuse what is not there, so as not to tell. Who can refuse it can as well hide it.
		if errors.Is(err, source.ErrNotFound) || errors.Is(err, source.ErrRefused) {
			break
		}
		if err != nil {
			return err
		}
		if err := updateRoot(r.set, data); err != nil {
			return judge(file, err)
		}
		if err := r.cache.write(rootName(version), data); err != nil {
			return err
		}
		r.root = data
	}
	root := r.set.Root.Signed
	if root.IsExpired(r.at.time) {
		return r.at.expired("root.json", root.Expires)
	}
	if !root.ConsistentSnapshot {
		return fmt.Errorf("root.json: %w: it does not promise consistent snapshots, which Cairn needs", ErrMalformed)
	}
	return nil
}

func (r *refresh) timestamp() error {
	if err := r.cachedTimestamp(); err != nil {
		return err
	}
	const file = "timestamp.json"
	data, err := r.fetch(file, maxTimestamp)
	if err != nil {
		return err
	}
	before := r.set.Timestamp
	_, err = r.updateTimestamp(data)
	if r.set.Timestamp != before { // verified, though perhaps expired
		if err := r.observe(); err != nil {
			return err
		}
	}
	// That of the same version counts as the one that is there.
	if err != nil && !errors.Is(err, &metadata.ErrEqualVersionNumber{}) && !errors.Is(err, &metadata.ErrExpiredMetadata{}) {
		return judge(file, err)
	}
	if s := r.set.Timestamp.Signed; s.IsExpired(r.at.time) {
		return r.at.expired(file, s.Expires)
	}
	if r.set.Timestamp == before {
		return nil
	}
	return r.cache.write(timestampName, data)
}

// cachedTimestamp takes up the last timestamp.json, against which a new one is held.
func (r *refresh) cachedTimestamp() error {
	data, err := r.cache.read(timestampName)
	if err != nil || data == nil {
		return err
	}
	if _, err = r.updateTimestamp(data); r.set.Timestamp == nil { // damaged, or its key was taken back
		return r.cache.discard(timestampName, err)
	}
	return r.observe()
}

// observe moves the newest time as far as the clock and the timestamp go.
func (r *refresh) observe() error {
	if !r.at.measured {
		return nil
	}
	return r.advance(r.at.now, r.set.Timestamp.Signed.Expires)
}

func (r *refresh) snapshot() error {
	want := r.set.Timestamp.Signed.Meta["snapshot.json"]
	cached, err := r.cache.read(snapshotName)
	if err != nil {
		return err
	}
	if cached != nil {
		_, err := r.updateSnapshot(cached, true)
		if err == nil {
			return nil
		}
		if r.set.Snapshot == nil {
			if err := r.cache.discard(snapshotName, err); err != nil {
				return err
			}
		}
	}
	file := fmt.Sprintf("%d.snapshot.json", want.Version)
	data, err := r.fetch(file, length(want, maxSnapshot))
	if err != nil {
		return err
	}
	facts, err := r.updateSnapshot(data, false)
	if err != nil {
		return r.judge(file, facts, want.Version, err)
	}
	return r.cache.write(snapshotName, data)
}

func (r *refresh) targets() error {
	want := r.set.Snapshot.Signed.Meta["targets.json"]
	cached, err := r.cache.read(targetsName)
	if err != nil {
		return err
	}
	if cached != nil {
		if _, err := r.updateTargets(cached); err == nil {
			return nil
		}
		// Not the one of this snapshot: nothing is held against it, so it may stay until it is replaced.
	}
	file := fmt.Sprintf("%d.targets.json", want.Version)
	data, err := r.fetch(file, length(want, maxTargets))
	if err != nil {
		return err
	}
	facts, err := r.updateTargets(data)
	if err != nil {
		return r.judge(file, facts, want.Version, err)
	}
	return r.cache.write(targetsName, data)
}

// judge knows more of the versions and of the time than go-tuf says.
func (r *refresh) judge(file string, f facts, version int64, err error) error {
	switch {
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		return r.at.expired(file, f.expires)
	case errors.Is(err, &metadata.ErrBadVersionNumber{}) && f.version != version:
		return fmt.Errorf("%s: %w: it has version %d: copy the release directory anew, all of it at once", file, ErrMixedUp, f.version)
	}
	return judge(file, err)
}

func (r *refresh) fetch(file string, limit int64) ([]byte, error) {
	return source.Get(r.ctx, r.source, "metadata/"+file, limit)
}

// length is what may be read of a file that m describes.
func length(m *metadata.MetaFiles, limit int64) int64 {
	if m.Length > 0 {
		return min(m.Length, limit)
	}
	return limit
}
