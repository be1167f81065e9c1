package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
)

func logsCommand(n node) *cobra.Command {
	var opt logfile.Options
	cmd := &cobra.Command{
		Use:               "logs PROCESS",
		Short:             "Print the log of a supervised process",
		GroupID:           "look",
		Example:           "  cairnctl logs control\n  cairnctl logs node --follow --lines 20",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: n.completeProcess,
		RunE: func(cmd *cobra.Command, args []string) error {
			return n.logs(cmd.Context(), cmd.OutOrStdout(), args[0], opt)
		},
	}
	cmd.Flags().BoolVarP(&opt.Follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().IntVarP(&opt.Lines, "lines", "n", 100, "begin with the newest `N` lines; -1 for all")
	return cmd
}

func processCommand(n node, verb string) *cobra.Command {
	help := map[string]string{
		"restart": "Stop a supervised process and start it again",
		"stop":    "Stop a supervised process until it is started",
		"start":   "Start a supervised process that was stopped",
	}
	return &cobra.Command{
		Use:               verb + " PROCESS",
		Short:             help[verb],
		GroupID:           "steer",
		Example:           fmt.Sprintf("  cairnctl %s control", verb),
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: n.completeProcess,
		RunE: func(cmd *cobra.Command, args []string) error {
			return n.do(cmd.Context(), initctl.Request{Verb: initctl.Verb(verb), Process: args[0]})
		},
	}
}

func shutdownCommand(n node, verb, help string) *cobra.Command {
	return &cobra.Command{
		Use:     verb,
		Short:   help,
		GroupID: "steer",
		Example: "  cairnctl " + verb,
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return n.do(cmd.Context(), initctl.Request{Verb: initctl.Verb(verb)})
		},
	}
}

// completeProcess offers the node's processes to the shell.
func (n node) completeProcess(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := n.status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range st.Processes {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
