package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
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
		SANs: c.TLSSANs, Settings: wantedSettings(d.cfg, role), Version: version.Get().GitVersion, Dir: stateDir, Floor: d.floor,
		Life: c.Life(), Clock: newMachineClock(), Status: d.status, Log: d.log,
	}
	o.ObtainNode = func(ctx context.Context, bootstrap tls.Certificate, servers []string, s membership.Settings) error {
		return d.obtainNode(ctx, bootstrap, servers, s)
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
func (d *daemon) obtainNode(ctx context.Context, bootstrap tls.Certificate, servers []string, s membership.Settings) error {
	var problems []error
	for _, server := range servers {
		_, err := nodecert.Ensure(ctx, nodecert.Options{
			Node: d.name, Dir: agentTLS, Server: "https://" + server,
			Addresses: func() ([]netip.Addr, error) {
				all, err := pki.Addresses(d.cfg.Cairn.Cluster.NodeIPs()...)
				if err != nil {
					return nil, err
				}
				return pki.NodeAddresses(all, s.PodCIDRs)
			},
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

// keepStoreCertificate renews a witness's certificate in time until ctx ends, and follows when the cluster's authorities are
// replaced.
func (d *daemon) keepStoreCertificate(ctx context.Context, o join.Options) error {
	r := join.RenewOptions{Role: o.Role, Node: o.Node, Dir: o.Dir, Floor: o.Floor, Life: o.Life, Log: d.log}
	var renewing sync.Mutex
	renew := func(ctx context.Context) (bool, error) {
		renewing.Lock()
		defer renewing.Unlock()
		r := r
		r.Servers = d.servers()
		return join.RenewStore(ctx, r)
	}
	var following sync.WaitGroup
	defer following.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	following.Go(func() {
		_ = join.Follow(ctx, r, join.FollowOptions{ // has no error but ctx's end
			Servers: d.servers,
			Certificates: func(ctx context.Context) error {
				_, err := renew(ctx)
				return err
			},
		})
	})
	tick := time.NewTicker(pki.Interval(o.Life))
	defer tick.Stop()
	said := ""
	for {
		if _, err := membership.Load(membership.Path); err != nil {
			return err
		}
		renewed, err := renew(ctx)
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

// servers are those that the machine knows, and the one that the configuration names: all the others may have been
// replaced meanwhile.
func (d *daemon) servers() []string {
	var all []string
	if m, err := membership.Load(membership.Path); err == nil {
		all = m.Servers
	} else {
		d.log.Error("the cluster's servers are not known", "error", err)
	}
	joined := d.cfg.Cairn.Server()
	if joined == "" || slices.Contains(all, joined) {
		return all
	}
	return append(slices.Clone(all), joined)
}

// wantedSettings are the cluster's settings as the machine's own configuration has them, as far as it does. A server always
// says where it keeps the cluster's state.
func wantedSettings(cfg *config.Config, role membership.Role) *membership.Settings {
	c := cfg.Cairn.Cluster
	s := membership.Settings{PodCIDRs: c.PodCIDRs(), ServiceCIDRs: c.ServiceCIDRs(), Flannel: c.FlannelBackend()}
	if role == membership.Server {
		s.Datastore = datastore(cfg.Cairn.Datastore)
	}
	if len(s.PodCIDRs) == 0 && len(s.ServiceCIDRs) == 0 && s.Flannel == "" && s.Datastore == "" {
		return nil
	}
	return &s
}

// datastore is the kind of a datastore whose endpoint has been checked.
func datastore(d config.Datastore) membership.Datastore {
	switch kind := d.Kind(); {
	case kind == config.Own:
		return membership.OwnStore
	case kind == config.Etcd:
		return membership.Etcd
	case strings.HasPrefix(d.Endpoint, "mysql:"):
		return membership.MySQL
	}
	return membership.Postgres
}
