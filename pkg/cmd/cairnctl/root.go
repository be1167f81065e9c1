package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/release"
)

// Exit codes, documented in the help text.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
)

const longHelp = `cairnctl shows and steers a Cairn node, and checks cloud-configs.

On a node it talks to the machine daemon (cairnd), and to init when the daemon is down. It needs root there.

Exit codes:
  0  done
  1  it did not work, a checked file has problems, or the store has no quorum
  2  wrong usage
  3  no Cairn node here: neither cairnd nor init can be reached`

// paths are where a node's sockets, logs, store and files are.
type paths struct{ daemon, init, logs, control, store, storeProgram, storeDir, root string }

// usageError is a wrong command line.
type usageError struct{ error }

// run executes one command line and returns the exit code.
func run(ctx context.Context, stdout, stderr io.Writer, args []string, p paths) int {
	cmd := newRoot(p)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "cairnctl:", err)
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errUnreachable):
		return exitUnreachable
	default:
		return exitFailed
	}
}

func newRoot(p paths) *cobra.Command {
	root := &cobra.Command{
		Use:           "cairnctl",
		Short:         "Show and steer a Cairn node",
		Long:          longHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "look", Title: "Look at the node:"},
		&cobra.Group{ID: "steer", Title: "Steer the node:"},
		&cobra.Group{ID: "upgrade", Title: "Releases:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "store", Title: "Kubernetes' state:"},
		&cobra.Group{ID: "config", Title: "Configuration:"},
	)
	n := node{paths: p}
	root.AddCommand(
		statusCommand(n), logsCommand(n), versionCommand(),
		processCommand(n, "restart"), processCommand(n, "stop"), processCommand(n, "start"),
		shutdownCommand(n, "reboot", "Restart the machine in order"),
		shutdownCommand(n, "poweroff", "Shut the machine down in order and switch it off"),
		resetCommand(n), upgradeCommand(n), rollbackCommand(n), clusterCommand(n), tokenCommand(n), kubeconfigCommand(n), certificateCommand(n),
		storeCommand(n), configCommand(), releaseCommand(p.root),
	)
	return root
}

// usage makes the errors of an argument check usage errors.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
		}
		return nil
	}
}

// outputFlag adds --output to cmd and returns its value's reader.
func outputFlag(cmd *cobra.Command) func() (json bool, err error) {
	format := cmd.Flags().StringP("output", "o", "text", "output format: text or json")
	complete := cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("output", complete); err != nil {
		return func() (bool, error) { return false, err }
	}
	return func() (bool, error) {
		switch *format {
		case "json":
			return true, nil
		case "text":
			return false, nil
		default:
			return false, usageError{fmt.Errorf("--output is text or json, not %q", *format)}
		}
	}
}

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of cairnctl",
		GroupID: "look",
		Example: "  cairnctl version",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), release.Version)
			return err
		},
	}
	return cmd
}
