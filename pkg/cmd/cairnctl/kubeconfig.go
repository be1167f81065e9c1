package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

const kubeconfigLong = `Make a kubeconfig for a person or a program outside of the cluster, on any server, and print it.

It holds a client certificate and its key: keep it secret. A certificate cannot be taken back before it ends, so choose a
short life, and rights by a group: cluster-admin belongs to system:masters; other groups get theirs from a
ClusterRoleBinding or RoleBinding.`

func kubeconfigCommand(n node) *cobra.Command {
	var r admin.KubeconfigRequest
	cmd := &cobra.Command{
		Use: "kubeconfig", Short: "Make a kubeconfig for an operator", GroupID: "cluster", Long: kubeconfigLong,
		Example: "  cairnctl kubeconfig --user ana --group system:masters --ttl 8h > ana.kubeconfig\n" +
			"  cairnctl kubeconfig --user ci --group deployers --server https://shop.example.com:6443",
		Args: usage(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&r.User, "user", "", "name of the user, as the audit log and role bindings will call it")
	cmd.Flags().StringArrayVar(&r.Groups, "group", nil, "group of the user; may be repeated")
	cmd.Flags().DurationVar(&r.TTL, "ttl", 24*time.Hour, "how long the certificate is valid, at most 8760h")
	cmd.Flags().StringVar(&r.Server, "server", "", "URL of the API; by default this server's address")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case r.User == "":
			return usageError{fmt.Errorf("--user is missing; see '%s --help'", cmd.CommandPath())}
		case r.TTL <= 0:
			return usageError{fmt.Errorf("--ttl is a duration such as 24h, not %s", r.TTL)}
		}
		var data []byte
		err := n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
			data, err = c.Kubeconfig(ctx, r)
			return err
		})
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(data)
		return err
	}
	return cmd
}
