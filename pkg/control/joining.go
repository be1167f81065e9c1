package control

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/version"

	"github.com/cairn-os/cairn/pkg/join"
	storeadmin "github.com/cairn-os/cairn/pkg/store/admin"
)

// joinServer takes machines into the cluster.
func (o Options) joinServer(client kubernetes.Interface, log *slog.Logger) *join.Server {
	s := join.ServerOptions{
		Client: client, TLSDir: o.tls(), EncryptionFile: o.encryption(), PKI: o.pki, Version: version.Get().GitVersion, Log: log,
	}
	if o.hasStore() {
		s.StorePeers, s.MemberOnline = o.storePeers, o.memberOnline
	}
	return join.NewServer(s)
}

// hasStore says whether the cluster's data is in Cairn's own store.
func (o Options) hasStore() bool { return o.StoreSocket != "" && len(o.Etcd.Servers) == 0 }

// openStore asks the machine's own store. It returns nil when there is none.
func (o Options) openStore() *storeadmin.Client {
	if !o.hasStore() {
		return nil
	}
	return storeadmin.Open(o.StoreSocket)
}

func (o Options) storeMembers(ctx context.Context) ([]storeadmin.Member, error) {
	client := storeadmin.Open(o.StoreSocket)
	defer client.Close()
	status, err := client.Status(ctx)
	if err == nil && (!status.Quorum || len(status.Members) == 0) {
		// A follower without a leader knows nothing for sure, and a machine would join by nothing.
		err = errors.New("the store has no leader at the moment, so its members are not known")
	}
	return status.Members, err
}

// storePeers returns where the store's members can be reached, those that are online first.
func (o Options) storePeers(ctx context.Context) ([]string, error) {
	members, err := o.storeMembers(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(members, func(a, b storeadmin.Member) int {
		switch {
		case a.Online == b.Online:
			return 0
		case a.Online:
			return -1
		}
		return 1
	})
	var all []string
	for _, m := range members {
		all = append(all, m.Addresses...)
	}
	if len(all) == 0 {
		return nil, errors.New("no member of the store has told its address yet")
	}
	return all, nil
}

func (o Options) memberOnline(ctx context.Context, node string) (bool, error) {
	members, err := o.storeMembers(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(members, func(m storeadmin.Member) bool { return m.Name == node && m.Online }), nil
}
