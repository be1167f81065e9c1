// Package containerd runs containerd with a generated configuration and imports the air-gap images into it.
//
// The shims of pods, and runc, are programs of their own: pods keep running while containerd is away.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/command"

	"github.com/cairn-os/cairn/pkg/airgap"
	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// importGrace bounds how long the import of images delays readiness. It goes on afterwards.
const importGrace = 20 * time.Second

// Options say where containerd's files are. DefaultOptions gives those of a node.
type Options struct {
	Root       string // durable
	State      string // not durable
	Socket     string
	ConfigFile string // generated
	CNIBinDir  string
	CNIConfDir string
	PauseImage string // of a pod's sandbox; never removed
	// ShimCgroup, below the cgroup v2 root, holds the shims, so that they outlive containerd's own group. Empty: they
	// stay in containerd's.
	ShimCgroup string
	ImageDirs  []string // air-gap directories
	ImageState string   // remembers what was imported
}

// PauseImage is the name of the image baked into the root file system.
const PauseImage = "cairn.local/pause:3.10.2"

// DefaultOptions returns the options of a node.
func DefaultOptions() Options {
	return Options{
		Root:       "/var/lib/cairn/containerd",
		State:      "/run/cairn/containerd",
		Socket:     "/run/cairn/containerd.sock",
		ConfigFile: "/run/cairn/containerd.toml",
		CNIBinDir:  "/usr/libexec/cni",
		CNIConfDir: "/etc/cni/net.d",
		PauseImage: PauseImage,
		ShimCgroup: "/cairn/shims",
		ImageDirs:  []string{"/usr/share/cairn/images", "/var/lib/cairn/images", "/run/cairn/sys/seed/images"},
		ImageState: "/var/lib/cairn/containerd/air-gap.json",
	}
}

// Run runs containerd until ctx ends, or SIGTERM or SIGINT, which containerd handles itself, too. It calls ready once
// containerd serves and the air-gap images are there, or after 20 s of importing.
func Run(ctx context.Context, log *slog.Logger, o Options, ready func() error) error {
	h, err := inspectHost()
	if err != nil {
		return err
	}
	if o.ShimCgroup != "" && h.cgroupV2 {
		if err := os.MkdirAll(filepath.Join(cgroupRoot, o.ShimCgroup), 0o755); err != nil {
			return fmt.Errorf("create cgroup of shims: %w", err)
		}
	}
	for _, dir := range []string{filepath.Dir(o.ConfigFile), filepath.Dir(o.Socket), o.CNIConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	if err := atomicfile.Write(o.ConfigFile, []byte(o.config(h)), 0o600); err != nil {
		return err
	}
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go o.serveReady(ctx, log, ready)
	err = command.App().RunContext(ctx, []string{"containerd", "--config", o.ConfigFile})
	// Stopped before it serves, containerd returns the error of its context.
	if err != nil && asked.Err() == nil {
		return fmt.Errorf("containerd ended: %w", err)
	}
	return nil
}

// serveReady waits for the socket, imports the images and reports readiness.
func (o Options) serveReady(ctx context.Context, log *slog.Logger, ready func() error) {
	c, err := o.connect(ctx)
	if err != nil {
		if ctx.Err() == nil {
			log.Error("containerd does not answer", "error", err)
		}
		return
	}
	defer c.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		importer := airgap.Importer{Images: airgap.Containerd{Client: c}, Dirs: o.ImageDirs, State: o.ImageState, Pinned: []string{o.PauseImage}, Log: log}
		// Each bad file is reported by name; the node works without it.
		if err := importer.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("air-gap images", "error", err)
		}
	}()
	select {
	case <-done:
	case <-time.After(importGrace):
		log.Info("air-gap images are still being imported")
	case <-ctx.Done():
		return
	}
	if err := ready(); err != nil {
		log.Error("notify readiness", "error", err)
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// connect waits until containerd serves.
func (o Options) connect(ctx context.Context) (*client.Client, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if _, err := os.Stat(o.Socket); err == nil {
			c, err := client.New(o.Socket, client.WithTimeout(5*time.Second))
			if err == nil {
				if ok, err := c.IsServing(ctx); err == nil && ok {
					return c, nil
				}
				last = errors.Join(err, c.Close())
			} else {
				last = err
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), last)
		case <-tick.C:
		}
	}
}
