package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"time"

	"k8s.io/component-base/version"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/nodecert"
	"github.com/cairn-os/cairn/pkg/pki"
)

// addressPause is how often a machine without an address looks for one.
const addressPause = time.Second

// runJoin makes the machine a member of a cluster and ends; on a witness, which has no other part that could, it goes on
// and renews the store's certificate.
func (d *daemon) runJoin(ctx context.Context) error {
	_, err := membership.Load(membership.Path)
	d.member = err == nil
	if !d.member {
		d.awaitClock(ctx)
	}
	o, err := d.joinOptions(ctx)
	if err != nil {
		return err
	}
	if err := join.Run(ctx, o); err != nil {
		return err // also when it was told to stop: what waits for it must not start
	}
	d.status("")
	if err := d.ready(); err != nil || o.Role != membership.Witness {
		return err
	}
	return d.keepStoreCertificate(ctx, o)
}

func (d *daemon) joinOptions(ctx context.Context) (join.Options, error) {
	addresses, err := d.awaitAddresses(ctx)
	if err != nil {
		return join.Options{}, err
	}
	c := d.cfg.Cairn.Cluster
	role := membership.RoleOf(membership.Path, membership.Role(d.cfg.EffectiveRole()))
	o := join.Options{
		Role: role, Node: d.name, ServerURL: d.cfg.Cairn.ServerURL, Token: d.cfg.Cairn.Token, Addresses: addresses,
		SANs: c.TLSSANs, Settings: wantedSettings(d.cfg), Version: version.Get().GitVersion, Dir: stateDir, Floor: d.floor,
		Life: c.Life(), Status: d.status, Log: d.log,
	}
	o.ObtainNode = func(ctx context.Context, bootstrap tls.Certificate, servers []string, _ []byte) error {
		return d.obtainNode(ctx, bootstrap, servers)
	}
	return o, nil
}

// awaitAddresses waits until the machine has an address: what joins without one could not be reached. A machine that is
// a member already does not wait, for a cable that is pulled at boot.
func (d *daemon) awaitAddresses(ctx context.Context) ([]netip.Addr, error) {
	for said := ""; ; {
		addresses, err := pki.Addresses(d.cfg.Cairn.Cluster.NodeIPs()...)
		if d.member && errors.Is(err, pki.ErrNoAddress) {
			return nil, nil
		}
		if !errors.Is(err, pki.ErrNoAddress) {
			return addresses, err
		}
		if err.Error() != said {
			said = err.Error()
			d.log.Warn("waiting for an address", "error", err)
			d.status(said)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(addressPause):
		}
	}
}

// obtainNode gets an agent's certificates from the first server that gives them.
func (d *daemon) obtainNode(ctx context.Context, bootstrap tls.Certificate, servers []string) error {
	var problems []error
	for _, server := range servers {
		_, err := nodecert.Ensure(ctx, nodecert.Options{
			Node: d.name, Dir: agentTLS, Server: "https://" + server,
			Addresses: func() ([]netip.Addr, error) { return pki.Addresses(d.cfg.Cairn.Cluster.NodeIPs()...) },
			Bootstrap: func(context.Context) (tls.Certificate, error) { return bootstrap, nil },
			Floor:     d.floor, Log: d.log,
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// keepStoreCertificate renews a witness's certificate in time until ctx ends.
func (d *daemon) keepStoreCertificate(ctx context.Context, o join.Options) error {
	tick := time.NewTicker(pki.Interval(o.Life))
	defer tick.Stop()
	said := ""
	for {
		m, err := membership.Load(membership.Path)
		if err != nil {
			return err
		}
		renewed, err := join.RenewStore(ctx, join.RenewOptions{
			Role: o.Role, Node: o.Node, Servers: d.withJoined(m.Servers), Dir: o.Dir, Floor: o.Floor, Life: o.Life, Log: d.log,
		})
		switch {
		case renewed:
			d.log.Info("the store's certificate was renewed")
			d.status("")
			said = ""
		case err != nil && err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			d.log.Error("the store's certificate is not renewed", "error", err)
			d.status("the store's certificate is not renewed: " + said)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// withJoined adds the server that the configuration names: all the others may have been replaced meanwhile.
func (d *daemon) withJoined(servers []string) []string {
	joined := d.cfg.Cairn.Server()
	if joined == "" || slices.Contains(servers, joined) {
		return servers
	}
	return append(slices.Clone(servers), joined)
}

// wantedSettings are the cluster's settings as the machine's own configuration has them, as far as it does.
func wantedSettings(cfg *config.Config) *membership.Settings {
	c := cfg.Cairn.Cluster
	s := membership.Settings{PodCIDRs: c.PodCIDRs(), ServiceCIDRs: c.ServiceCIDRs(), Flannel: c.FlannelBackend()}
	if len(s.PodCIDRs) == 0 && len(s.ServiceCIDRs) == 0 && s.Flannel == "" {
		return nil
	}
	return &s
}
