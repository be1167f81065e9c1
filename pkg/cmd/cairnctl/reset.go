package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/reset"
)

const resetLong = `Return this machine to its factory state: everything on its data partition is removed at the next boot, which comes at
once. That is the cluster's state, pods' data, images, logs and the machine's identity. What lies on the boot disk's first
partition, seed/config.yaml for one, stays, and the machine begins anew with it.

The last server of a cluster takes the cluster with it. Of another, the cluster keeps the Node: delete it afterwards on a
server, with 'kubectl delete node NAME', unless the machine is to come back under its name.`

func resetCommand(n node) *cobra.Command {
	var request reset.Request
	var yes bool
	cmd := &cobra.Command{
		Use: "reset", Short: "Return the machine to its factory state and reboot it", GroupID: "steer", Long: resetLong,
		Example: "  cairnctl reset\n  cairnctl reset --keep-config --yes",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().BoolVar(&request.KeepConfig, "keep-config", false, "spare /var/lib/cairn/config.yaml and config.d")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without a question")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		st, err := n.status(cmd.Context())
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "All data of %s will be removed, for good.\n", st.Hostname)
		if err := confirm(cmd, yes, st.Hostname); err != nil {
			return err
		}
		if err := request.Write(n.root); err != nil {
			return err
		}
		return n.do(cmd.Context(), initctl.Request{Verb: initctl.VerbReboot})
	}
	return cmd
}
