package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/control"
	"github.com/cairn-os/cairn/pkg/control/approver"
	"github.com/cairn-os/cairn/pkg/control/nodes"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

func (d *daemon) controlOptions(m *membership.Membership) (control.Options, error) {
	o := control.DefaultOptions(m.Node)
	c := d.cfg.Cairn.Cluster
	o.Settings, o.Joined = m.Settings, !m.Founded
	o.NodeIPs, o.SANs, o.Life, o.ClockFloor = c.NodeIPs(), c.TLSSANs, c.Life(), d.floor
	o.Arguments = control.Arguments{APIServer: c.KubeAPIServerArgs, ControllerManager: c.KubeControllerManagerArgs, Scheduler: c.KubeSchedulerArgs}
	o.Audit = c.Audit
	store := d.cfg.Cairn.Datastore
	if store.Kind() != config.Own {
		o.StoreSocket = ""
	}
	if servers := store.EtcdServers(); servers != nil { // an SQL database is served by the store, as its own data would be
		o.Etcd = control.Etcd{Servers: servers, CAFile: store.CAFile, CertFile: store.CertFile, KeyFile: store.KeyFile}
	}
	var err error
	if o.Identity, err = join.Identity(stateDir); err != nil {
		return o, err
	}
	if m.Founded {
		o.Founding = &control.Founding{Token: d.cfg.Cairn.Token}
	}
	o.Controllers = []control.Controller{
		{Name: "nodes", Run: func(ctx context.Context, client kubernetes.Interface) error { return d.keepNodes(ctx, client, o) }},
		{Name: "approver", Run: func(ctx context.Context, client kubernetes.Interface) error { return d.approve(ctx, client, o) }},
	}
	if o.StoreSocket != "" {
		o.Controllers = append(o.Controllers, control.Controller{Name: "witnesses", Run: func(ctx context.Context, client kubernetes.Interface) error {
			return d.sweepWitnesses(ctx, client, o.StoreSocket)
		}})
	}
	o.Status = d.status
	return o, nil
}

// witnessInterval is how often the records of witnesses are compared with the store's members.
const witnessInterval = 10 * time.Minute

// sweepWitnesses forgets the witnesses that are no members any more, so that their certificates are not renewed.
func (d *daemon) sweepWitnesses(ctx context.Context, client kubernetes.Interface, socket string) error {
	members := admin.Open(socket)
	defer members.Close()
	tick := time.NewTicker(witnessInterval)
	defer tick.Stop()
	for {
		status, err := members.Status(ctx)
		if err == nil && status.Quorum && len(status.Members) > 0 {
			var names []string
			for _, m := range status.Members {
				names = append(names, m.Name)
			}
			err = join.ForgetWitnesses(ctx, client, names)
		}
		if err != nil && ctx.Err() == nil {
			d.log.Warn("witnesses not compared with the store's members", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// keepNodes keeps labels, taints and the store's members as the Nodes say.
func (d *daemon) keepNodes(ctx context.Context, client kubernetes.Interface, o control.Options) error {
	settings := nodes.Options{Client: client, Node: o.Node, Log: d.log}
	if o.StoreSocket != "" {
		members := admin.Open(o.StoreSocket)
		defer members.Close()
		settings.Store = members
	}
	err := nodes.New(settings).Run(ctx)
	if errors.Is(err, nodes.ErrHandOver) {
		err = fmt.Errorf("%w: %w", control.ErrHandOver, err)
	}
	return err
}

// approve gives machines the certificates of their Nodes.
func (d *daemon) approve(ctx context.Context, client kubernetes.Interface, o control.Options) error {
	networks := slices.Concat(o.Settings.PodCIDRs, o.Settings.ServiceCIDRs)
	return approver.New(approver.Options{Client: client, Cluster: networks, Log: d.log}).Run(ctx)
}
