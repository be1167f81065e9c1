package node

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/pflag"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"

	"github.com/cairn-os/cairn/pkg/pki"
)

func (o Options) runProxy(ctx context.Context) error {
	h, err := inspectHost()
	if err != nil {
		return err
	}
	options := proxy.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	options.AddFlags(fs)
	if err := fs.Parse(o.proxyArguments(h)); err != nil {
		return fmt.Errorf("arguments: %w", err)
	}
	if err := options.Complete(fs); err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	// No options.Validate: v1.36 refuses the empty metrics address that turns the port off, by its own documentation.
	return options.Run(ctx)
}

func (o Options) proxyArguments(h host) []string {
	return []string{
		"--kubeconfig=" + o.componentConfig(pki.KubeProxy),
		"--hostname-override=" + o.Name,
		"--proxy-mode=nftables",
		"--cluster-cidr=" + o.ClusterCIDR.String(),
		"--oom-score-adj=" + strconv.Itoa(int(h.oomScore)),
		// No ports of its own: both would answer anybody. An empty address would mean the default one.
		"--healthz-port=0",
		"--metrics-port=0",
		// The kernel's values stay; they follow the machine's memory.
		"--conntrack-max-per-core=0",
		"--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
	}
}
