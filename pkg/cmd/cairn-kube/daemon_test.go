package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// TestAwaitNetwork has the addresses of a machine come one after the other.
func TestAwaitNetwork(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	both := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}
	type found struct {
		all []netip.Addr
		err error
	}
	none, one, two := found{err: pki.ErrNoAddress}, found{all: []netip.Addr{v4}}, found{all: []netip.Addr{v4, v6}}
	broken := errors.New("configured node addresses: at most one of each family")
	for _, tt := range []struct {
		name     string
		networks []netip.Prefix
		finds    []found
		said     []string
		err      error
	}{
		{"there at once", both[:1], []found{one}, nil, nil},
		{"the cable comes later", both[:1], []found{none, none, one},
			[]string{"waiting for a network address: no network interface has an address yet", ""}, nil},
		{"IPv6 comes later", both, []found{none, one, two}, []string{
			"waiting for a network address: no network interface has an address yet",
			"waiting for a network address: the cluster has the network fd42::/48 and this machine no IPv6 address: no network interface has an address yet", ""}, nil},
		{"the configuration is wrong", both, []found{{err: broken}}, nil, broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var said []string
			d := &daemon{log: slog.New(slog.DiscardHandler), notify: func(m string) error { said = append(said, m[len("STATUS="):]); return nil }}
			finds := tt.finds
			err := d.awaitNetwork(t.Context(), func() ([]netip.Addr, error) {
				f := finds[0]
				finds = finds[1:]
				return f.all, f.err
			}, tt.networks)
			if !errors.Is(err, tt.err) || len(finds) > 0 {
				t.Errorf("awaitNetwork = %v with %d answers left; want %v", err, len(finds), tt.err)
			}
			if d := cmp.Diff(tt.said, said); d != "" {
				t.Errorf("status (-want +got):\n%s", d)
			}
		})
	}
}

// TestAwaitNetworkEnds stops a part that waits: it is told so without an error.
func TestAwaitNetworkEnds(t *testing.T) {
	d := &daemon{log: slog.New(slog.DiscardHandler), notify: func(string) error { return nil }}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := d.awaitNetwork(ctx, func() ([]netip.Addr, error) { return nil, pki.ErrNoAddress }, nil)
	if err != nil || ctx.Err() == nil {
		t.Errorf("awaitNetwork = %v before its end; want nil at its end", err)
	}
}

func TestNetworksOf(t *testing.T) {
	s := membership.DefaultSettings()
	if got := networksOf("node", s); len(got) != 1 || got[0] != s.PodCIDRs[0] {
		t.Errorf("node: %v", got)
	}
	if got := networksOf("control", s); len(got) != 1 || got[0] != s.ServiceCIDRs[0] {
		t.Errorf("control: %v", got)
	}
}
