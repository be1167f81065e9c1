package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

// Signed is the Trust of a machine: a channel of a release directory, by the client of package trust.
type Signed struct {
	Client *trust.Client
	Kind   string // target: what the machine is, "amd64"
	Line   string // name of the channel, "stable"
}

var _ Trust = Signed{}

// Channel implements Trust. It reads the directory's metadata anew, which the other methods then go by.
func (s Signed) Channel(ctx context.Context) (release.Channel, error) {
	if err := s.Client.Refresh(ctx); err != nil {
		return release.Channel{}, err
	}
	c, err := s.Client.Channel(ctx, s.Kind, s.Line)
	return c, unlisted(err)
}

// Manifest implements Trust.
func (s Signed) Manifest(ctx context.Context, version string) (release.Manifest, error) {
	m, err := s.Client.Manifest(ctx, s.Kind, version)
	return m, unlisted(err)
}

// Target implements Trust.
func (s Signed) Target(ctx context.Context, path string, limit int64) ([]byte, error) {
	data, err := s.Client.Target(ctx, path, limit)
	return data, unlisted(err)
}

// unlisted makes the absence of a file in the signed list what Trust says it is. A listed file that is missing on the
// server is another thing.
func unlisted(err error) error {
	if errors.Is(err, trust.ErrUnknown) {
		return fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	}
	return err
}

// Files are the Chunks of a release directory.
type Files struct{ source.Source }

var _ Chunks = Files{}

// Get implements Chunks.
func (f Files) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	return source.Get(ctx, f.Source, path, limit)
}
