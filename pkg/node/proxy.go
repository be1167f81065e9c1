package node

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

func (n *node) runProxy(ctx context.Context) error {
	h, err := inspectHost()
	if err != nil {
		return err
	}
	options := proxy.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	options.AddFlags(fs)
	if err := fs.Parse(n.proxyArguments(h)); err != nil {
		return fmt.Errorf("arguments: %w", err)
	}
	if err := options.Complete(fs); err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	// No options.Validate: v1.36 refuses the empty metrics address that turns the port off, by its own documentation.
	return options.Run(ctx)
}

func (n *node) proxyArguments(h host) []string {
	var pods []string
	for _, p := range n.Settings.PodCIDRs {
		pods = append(pods, p.String())
	}
	return append([]string{
		"--kubeconfig=" + n.kubeconfig(),
		"--hostname-override=" + n.Name,
		"--proxy-mode=nftables",
		"--cluster-cidr=" + strings.Join(pods, ","),
		"--oom-score-adj=" + strconv.Itoa(int(h.oomScore)),
		// No ports of its own: both would answer anybody. An empty address would mean the default one.
		"--healthz-port=0",
		"--metrics-port=0",
		// The kernel's values stay; they follow the machine's memory.
		"--conntrack-max-per-core=0",
		"--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
	}, arguments(n.ProxyArgs)...)
}
