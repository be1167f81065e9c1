package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	corev1 "k8s.io/api/core/v1"
)

// leases is what flannel's back-ends ask while they set themselves up: the node's share, and the hardware address that
// others know it by. It keeps what they want others to be told.
type leases struct {
	config *subnet.Config
	own    *corev1.Node
	share  prefixes
	attrs  lease.LeaseAttrs
}

var _ subnet.Manager = (*leases)(nil)

// errUnused says that a back-end asked for what it only needs when it follows other nodes by itself.
var errUnused = errors.New("not part of setting up")

func (l *leases) GetNetworkConfig(context.Context) (*subnet.Config, error) { return l.config, nil }

// AcquireLease notes what others are to be told about this node, and returns its share.
func (l *leases) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	l.attrs = *attrs
	return &lease.Lease{
		EnableIPv4: l.config.EnableIPv4, EnableIPv6: l.config.EnableIPv6,
		Subnet: flannel4(l.share[ipv4]), IPv6Subnet: flannel6(l.share[ipv6]),
		Attrs: *attrs, Expiration: time.Now().Add(24 * time.Hour),
	}, nil
}

// GetStoredMacAddresses returns what the node was known by before: others need no update then.
func (l *leases) GetStoredMacAddresses(context.Context) (v4, v6 string) {
	if l.own.Annotations[backendAnnotation] != vxlanBackend {
		return "", ""
	}
	var macs [2]string
	for f := range macs {
		if mac, err := vtepMAC(l.own.Annotations[dataAnnotation(family(f))]); err == nil {
			macs[f] = mac.String()
		}
	}
	return macs[ipv4], macs[ipv6]
}

func (l *leases) GetStoredPublicIP(context.Context) (v4, v6 string) { return "", "" }
func (l *leases) Name() string                                      { return "cairn" }

func (l *leases) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return errUnused
}
func (l *leases) RenewLease(context.Context, *lease.Lease) error { return errUnused }
func (l *leases) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errUnused
}
func (l *leases) WatchLeases(context.Context, chan []lease.LeaseWatchResult) error { return errUnused }
func (l *leases) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error {
	return errUnused
}

// announcement are the annotations that the own Node must have; an empty value means that it must not have it.
type announcement map[string]string

func newAnnouncement(attrs lease.LeaseAttrs, networks prefixes, public addresses) announcement {
	a := announcement{managedAnnotation: "true", backendAnnotation: attrs.BackendType}
	for f, p := range networks {
		data, address := "", ""
		if p.IsValid() {
			// A back-end without data says "null", as flannel itself does.
			raw := []json.RawMessage{attrs.BackendData, attrs.BackendV6Data}[f]
			if data = string(raw); len(raw) == 0 {
				data = "null"
			}
			address = public[f].String()
		}
		a[dataAnnotation(family(f))], a[publicAnnotation(family(f))] = data, address
	}
	return a
}

// patch is the JSON merge patch that makes the Node say so, nil when it does. The owner's overwrite of an address goes
// first.
func (a announcement) patch(own *corev1.Node) []byte {
	changes := make(map[string]any)
	for key, want := range a {
		for _, f := range []family{ipv4, ipv6} {
			over, err := netip.ParseAddr(own.Annotations[overwriteAnnotation(f)])
			if key == publicAnnotation(f) && want != "" && err == nil && familyOf(over) == f {
				want = over.String()
			}
		}
		have, has := own.Annotations[key]
		switch {
		case want == "" && has:
			changes[key] = nil
		case want != "" && have != want:
			changes[key] = want
		}
	}
	if len(changes) == 0 {
		return nil
	}
	// Maps of strings and nulls always encode.
	data, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": changes}})
	return data
}
