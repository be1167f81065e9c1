package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

const tokenLong = `Manage the tokens by which machines join the cluster, on any server.

A token is K10<SHA-256 of the cluster's authority>::<ID>:<secret>. It goes into the cloud-config of the machine that joins,
as cairn.token beside cairn.server_url. The hash keeps the machine from joining a stranger's cluster.

A token of the role server admits servers, agents and witnesses, one of the role agent agents only. Those named server and
agent are there from the beginning. Revoking a token lets nobody else in; machines that joined by it stay.`

func tokenCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Manage the tokens by which machines join", GroupID: "cluster", Long: tokenLong,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tokenListCommand(n), tokenCreateCommand(n), tokenShowCommand(n), tokenRevokeCommand(n))
	return cmd
}

func tokenListCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the tokens, without their secrets",
		Example: "  cairnctl token list\n  cairnctl token list --output json",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		var all []admin.Token
		err = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
			all, err = c.Tokens(ctx)
			return err
		})
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(cmd.OutOrStdout(), all)
		}
		return printTokens(cmd.OutOrStdout(), all, time.Now())
	}
	return cmd
}

func printTokens(w io.Writer, all []admin.Token, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "ID\tROLE\tEXPIRES\tONCE\tDESCRIPTION\n")
	for _, k := range all {
		expires := "never"
		switch {
		case k.Expires.IsZero():
		case now.After(k.Expires):
			expires = "has expired"
		default:
			expires = "in " + span(k.Expires.Sub(now))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Role, expires, dash(k.Once, "yes"), dash(k.Description != "", k.Description))
	}
	return t.Flush()
}

func tokenCreateCommand(n node) *cobra.Command {
	var r admin.TokenRequest
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token and print it",
		Example: "  cairnctl token create\n  cairnctl token create --role server --ttl 1h --once --description 'the new till server'",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&r.Role, "role", "agent", "what it admits: agent, or server (servers, agents and witnesses)")
	cmd.Flags().DurationVar(&r.TTL, "ttl", 24*time.Hour, "how long it is good; 0: for ever")
	cmd.Flags().BoolVar(&r.Once, "once", false, "good for one machine")
	cmd.Flags().StringVar(&r.Description, "description", "", "what it is for")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if r.Role != "agent" && r.Role != "server" {
			return usageError{fmt.Errorf("--role is agent or server, not %q", r.Role)}
		}
		if r.TTL < 0 {
			return usageError{fmt.Errorf("--ttl is a duration such as 24h, or 0, not %s", r.TTL)}
		}
		return n.printToken(cmd, output, func(ctx context.Context, c *admin.Client) (admin.Token, error) { return c.CreateToken(ctx, r) })
	}
	return cmd
}

func tokenShowCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ID", Short: "Print a token",
		Example:           "  cairnctl token show agent",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: n.completeToken,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return n.printToken(cmd, output, func(ctx context.Context, c *admin.Client) (admin.Token, error) { return c.Token(ctx, args[0]) })
	}
	return cmd
}

// printToken prints what get returns: the text alone, so that it can be pasted.
func (n node) printToken(cmd *cobra.Command, output func() (bool, error), get func(context.Context, *admin.Client) (admin.Token, error)) error {
	asJSON, err := output()
	if err != nil {
		return err
	}
	var k admin.Token
	err = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
		k, err = get(ctx, c)
		return err
	})
	switch {
	case err != nil:
		return err
	case asJSON:
		return printJSON(cmd.OutOrStdout(), k)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), k.Text)
	return err
}

func tokenRevokeCommand(n node) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Make a token worthless",
		Example:           "  cairnctl token revoke x4k2p9",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: n.completeToken,
		RunE: func(cmd *cobra.Command, args []string) error {
			return n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) error { return c.RevokeToken(ctx, args[0]) })
		},
	}
}

// completeToken offers the IDs of tokens to the shell.
func (n node) completeToken(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	_ = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) error { // nothing is offered then
		all, err := c.Tokens(ctx)
		for _, k := range all {
			ids = append(ids, k.ID)
		}
		return err
	})
	return ids, cobra.ShellCompDirectiveNoFileComp
}
