package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Work with cloud-configs",
		GroupID: "config",
		Args:    usage(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE...",
		Short: "Check cloud-configs as a node would, on any machine",
		Long: "Check cloud-configs as a node would. Every problem is printed as file:line: path: what is wrong.\n" +
			"Nothing is sent anywhere, so it can run on a workstation.",
		Example: "  cairnctl config check config.yaml\n  cairnctl config check config.d/*.yaml",
		Args:    usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			bad := 0
			for _, file := range files {
				switch _, err := config.Load(file); {
				case errors.Is(err, config.ErrNoConfig):
					fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, but it is empty\n", file)
				case err != nil:
					bad++
					fmt.Fprintln(cmd.ErrOrStderr(), err)
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", file)
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d files have problems", bad, len(files))
			}
			return nil
		},
	})
	return cmd
}
