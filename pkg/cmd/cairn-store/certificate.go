package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/release"
)

// certificate is that of a server's member, which the server makes itself: it has the authority's key. Control does that
// too, but starts only when the store serves, which it does not without a certificate that is valid.
type certificate struct{ options pki.Options }

// certificate is the machine's; nil where others make it, as for a witness.
func (f files) certificate(life time.Duration) (*certificate, error) {
	m, err := membership.Load(f.membership)
	if err != nil || m.Role != membership.Server {
		return nil, nil // What is wrong with it, connect says.
	}
	floor, err := clockFloor(release.Path)
	if err != nil {
		return nil, err
	}
	return &certificate{pki.Options{Dir: f.tls, Node: m.Node, Life: life, Floor: floor}}, nil
}

// ensure makes the certificate if it lacks, and renews it in time. The one that is there may do all the same when that
// does not succeed.
func (c *certificate) ensure(log *slog.Logger) {
	written, err := pki.EnsureLeaf(c.options, pki.Store)
	if len(written) > 0 {
		log.Info("store: certificate written", "files", written)
	}
	if err != nil {
		log.Error("store: the certificate is not renewed", "error", err)
	}
}

// keep does so until ctx ends: the store may wait for the others longer than a certificate lives.
func (c *certificate) keep(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(pki.Interval(c.options.Life))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.ensure(log)
		}
	}
}

// clockFloor is when the release at path was built; zero where there is none, as in tests.
func clockFloor(path string) (time.Time, error) {
	info, err := release.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("build time: %w", err)
	}
	return time.Unix(info.BuildTime, 0), nil
}
