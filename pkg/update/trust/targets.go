package trust

import (
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
)

// Channel returns the channel of that name for target, and keeps its floor. It refuses a channel whose newest version is
// below the highest floor that this machine knows.
func (c *Client) Channel(ctx context.Context, target, channel string) (release.Channel, error) {
	none := release.Channel{}
	for _, name := range []string{target, channel} {
		if err := release.CheckName(name); err != nil {
			return none, fmt.Errorf("read channel: %w", err)
		}
	}
	file := release.ChannelPath(target, channel)
	data, err := c.Target(ctx, file, release.MaxChannelSize)
	if err != nil {
		return none, err
	}
	ch, err := release.DecodeChannel(data)
	if err != nil {
		return none, fmt.Errorf("%s: %w: %w", file, ErrMalformed, err)
	}
	if err := c.raiseFloor(ch.Floor); err != nil {
		return none, fmt.Errorf("%s: %w", file, err)
	}
	if err := c.checkFloor(ch.Version); err != nil {
		return none, fmt.Errorf("%s: %w", file, err)
	}
	return ch, nil
}

// Manifest returns the manifest of a version for target. It refuses a version below the floor, and a manifest that is
// about another one.
func (c *Client) Manifest(ctx context.Context, target, version string) (release.Manifest, error) {
	none := release.Manifest{}
	if err := release.CheckName(target); err != nil {
		return none, fmt.Errorf("read manifest: %w", err)
	}
	if err := release.CheckVersion(version); err != nil {
		return none, fmt.Errorf("read manifest: %w", err)
	}
	if err := c.checkFloor(version); err != nil {
		return none, fmt.Errorf("read manifest: %w", err)
	}
	file := release.ManifestPath(target, version)
	set, err := c.trusted()
	if err != nil {
		return none, fmt.Errorf("%s: %w", file, err)
	}
	data, err := c.target(ctx, set, file, release.MaxManifestSize)
	if err != nil {
		return none, err
	}
	m, err := release.DecodeManifest(data)
	if err != nil {
		return none, fmt.Errorf("%s: %w: %w", file, ErrMalformed, err)
	}
	if m.Target != target || m.Version != version {
		return none, fmt.Errorf("%s: %w: it is about %s for %s: whoever signed it must correct the release directory", file, ErrMixedUp, m.Version, m.Target)
	}
	if err := c.advance(time.Unix(m.BuildTime, 0), set.Timestamp.Signed.Expires); err != nil {
		return none, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// Target returns the bytes of the signed file at path (such as an index), which may have at most limit bytes.
func (c *Client) Target(ctx context.Context, file string, limit int64) ([]byte, error) {
	set, err := c.trusted()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c.target(ctx, set, file, limit)
}

// trusted is what the last Refresh found.
func (c *Client) trusted() (*trustedmetadata.TrustedMetadata, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.set == nil {
		return nil, ErrNotRefreshed
	}
	return c.set, nil
}

func (c *Client) target(ctx context.Context, set *trustedmetadata.TrustedMetadata, file string, limit int64) ([]byte, error) {
	t := set.Targets[metadata.TARGETS].Signed.Targets[file]
	if t == nil {
		return nil, fmt.Errorf("%s: %w: was this version, or this channel, made for this kind of machine?", file, ErrUnknown)
	}
	sum := t.Hashes["sha256"]
	if len(sum) == 0 || t.Length <= 0 {
		return nil, fmt.Errorf("%s: %w: it is signed without length or SHA-256", file, ErrMalformed)
	}
	if t.Length > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, and %d may be", file, source.ErrTooLarge, t.Length, limit)
	}
	dir, base := path.Split(file)
	data, err := source.Get(ctx, c.source, "targets/"+dir+hex.EncodeToString(sum)+"."+base, t.Length)
	if err != nil {
		return nil, err
	}
	if err := t.VerifyLengthHashes(data); err != nil {
		return nil, judge(file, err)
	}
	return data, nil
}

// raiseFloor keeps floor if it is higher than the one that is kept.
func (c *Client) raiseFloor(floor string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if floor == "" || release.Compare(floor, c.floor) <= 0 {
		return nil
	}
	if err := c.cache.write(floorName, []byte(floor+"\n")); err != nil {
		return err
	}
	c.log.Info("floor raised", "from", c.floor, "to", floor)
	c.floor = floor
	return nil
}

func (c *Client) checkFloor(version string) error {
	if floor := c.Floor(); release.Compare(version, floor) < 0 {
		return fmt.Errorf("version %s: %w: this machine takes %s or newer", version, ErrFloor, floor)
	}
	return nil
}
