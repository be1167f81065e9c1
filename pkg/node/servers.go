package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// followServers tells set where the cluster's apiservers are, whenever that changes, until ctx ends. Each apiserver keeps
// itself in the EndpointSlice of the Service default/kubernetes, and the others take a dead one out of it.
func followServers(ctx context.Context, log *slog.Logger, client kubernetes.Interface, set func([]string) error) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName + "=kubernetes" }))
	slicesOf := factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := slicesOf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { poke() }, UpdateFunc: func(any, any) { poke() }, DeleteFunc: func(any) { poke() },
	}); err != nil {
		return fmt.Errorf("watch the apiservers' addresses: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	var last []string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		var all []*discoveryv1.EndpointSlice
		for _, o := range slicesOf.Informer().GetStore().List() {
			if s, ok := o.(*discoveryv1.EndpointSlice); ok {
				all = append(all, s)
			}
		}
		servers := serversOf(all)
		// None at all is an apiserver that just started and has not entered itself yet.
		if len(servers) == 0 || slices.Equal(servers, last) {
			continue
		}
		if err := set(servers); err != nil {
			log.Error("apiservers' addresses not kept", "servers", servers, "error", err)
			continue
		}
		log.Info("apiservers", "servers", servers)
		last = servers
	}
}

// serversOf lists host:port of the endpoints, sorted, each once.
func serversOf(all []*discoveryv1.EndpointSlice) []string {
	var servers []string
	for _, s := range all {
		port := 0
		for _, p := range s.Ports {
			if p.Port != nil && (port == 0 || p.Name != nil && *p.Name == "https") {
				port = int(*p.Port)
			}
		}
		if port == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, address := range e.Addresses {
				servers = append(servers, net.JoinHostPort(address, strconv.Itoa(port)))
			}
		}
	}
	slices.Sort(servers)
	return slices.Compact(servers)
}
