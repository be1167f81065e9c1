package airgap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

const (
	// namespace is the one of Kubernetes' images in containerd.
	namespace = "k8s.io"
	// The labels by which containerd's CRI plugin knows its images.
	managedLabel, managed = "io.cri-containerd.image", "managed"
	pinnedLabel, pinned   = "io.cri-containerd.pinned", "pinned"
)

// Containerd is the image store of a containerd.
type Containerd struct{ Client *client.Client }

var _ Store = Containerd{}

// Import takes archives of Docker's and OCI's layout, plain or compressed with gzip or zstd, and unpacks the images for
// this machine's architecture.
func (c Containerd) Import(ctx context.Context, r io.Reader, pin []string) (names []string, err error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	ctx, release, err := c.Client.WithLease(ctx) // nothing is collected before it is named
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	defer plain.Close()
	imported, err := c.Client.Import(ctx, plain, client.WithImageLabels(map[string]string{managedLabel: managed}))
	if err != nil {
		return nil, err
	}
	for _, i := range imported {
		if err := client.NewImage(c.Client, i).Unpack(ctx, ""); err != nil {
			return names, fmt.Errorf("unpack %s: %w", i.Name, err)
		}
		if slices.Contains(pin, i.Name) {
			if err := c.pin(ctx, i); err != nil {
				return names, err
			}
		}
		names = append(names, i.Name)
	}
	return names, nil
}

func (c Containerd) pin(ctx context.Context, i images.Image) error {
	i.Labels = map[string]string{managedLabel: managed, pinnedLabel: pinned}
	if _, err := c.Client.ImageService().Update(ctx, i, "labels."+pinnedLabel, "labels."+managedLabel); err != nil {
		return fmt.Errorf("pin %s: %w", i.Name, err)
	}
	return nil
}

// Has looks the name up.
func (c Containerd) Has(ctx context.Context, name string) (bool, error) {
	_, err := c.Client.ImageService().Get(namespaces.WithNamespace(ctx, namespace), name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
