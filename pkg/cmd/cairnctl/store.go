package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// lineTimeout bounds the question for the store's line in the node's status.
const lineTimeout = 2 * time.Second

func storeCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "store",
		Short:   "Look after the store that keeps Kubernetes' state",
		GroupID: "store",
		Long: "Look after the store that keeps Kubernetes' state.\n\n" +
			"The stores of several servers are members of one cluster. It works while a majority of its voters does.\n" +
			"What is asked of one member is answered by the leader, so run these commands on any server.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		storeStatusCommand(n), storeMembersCommand(n), storeRemoveCommand(n), storeLeaderCommand(n),
		storeSnapshotCommand(n), storeSnapshotsCommand(n), storeExportCommand(n), storeVerifyCommand(n),
		storeRestoreCommand(n, "restore"), storeRestoreCommand(n, "import"), storeRecoverCommand(n),
	)
	return cmd
}

// askStore calls f with a client of this node's store.
func (n node) askStore(ctx context.Context, f func(context.Context, *admin.Client) error) error {
	c := admin.Open(n.paths.store)
	defer c.Close()
	err := f(ctx, c)
	if !down(err) {
		return err
	}
	if _, nodeErr := n.status(ctx); errors.Is(nodeErr, errUnreachable) {
		return nodeErr
	}
	return fmt.Errorf("the store does not answer: see 'cairnctl status' and 'cairnctl logs store' (%w)", err)
}

func (n node) storeStatus(ctx context.Context) (s admin.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err = n.askStore(ctx, func(ctx context.Context, c *admin.Client) (err error) {
		s, err = c.Status(ctx)
		return err
	})
	return s, err
}

// storeLine says in a line how the store is; "" when it does not answer.
func (n node) storeLine(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lineTimeout)
	defer cancel()
	c := admin.Open(n.paths.store)
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return ""
	}
	if !s.Quorum {
		return strings.Join(nonEmpty(s.Phase, "no quorum", s.Message), ", ")
	}
	return fmt.Sprintf("%s, %s, revision %d", s.Phase, votersText(s), s.Revision)
}

func votersText(s admin.Status) string {
	voters, online := 0, 0
	for _, m := range s.Members {
		if m.Role == "voter" {
			voters++
			if m.Online {
				online++
			}
		}
	}
	return fmt.Sprintf("%d of %d voters online", online, voters)
}

func storeStatusCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the store, its members and its newest snapshot",
		Long:  "Show the store, its members and its newest snapshot. The exit code is 1 when the store has no quorum.",
		Example: "  cairnctl store status\n" +
			"  cairnctl store status --output json | jq .members",
		Args: usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := n.showStore(cmd, output, printStore)
		if err == nil && !s.Quorum {
			err = fmt.Errorf("the store has no quorum%s", after(": ", s.Message))
		}
		return err
	}
	return cmd
}

func storeMembersCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "members",
		Short:   "List the members of the store's cluster",
		Example: "  cairnctl store members",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, err := n.showStore(cmd, output, printMembers)
		return err
	}
	return cmd
}

// showStore prints the store's status in the format that was asked for.
func (n node) showStore(cmd *cobra.Command, output func() (bool, error), text func(io.Writer, admin.Status) error) (admin.Status, error) {
	asJSON, err := output()
	if err != nil {
		return admin.Status{}, err
	}
	s, err := n.storeStatus(cmd.Context())
	if err != nil {
		return s, err
	}
	if asJSON {
		return s, printJSON(cmd.OutOrStdout(), s)
	}
	return s, text(cmd.OutOrStdout(), s)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printStore writes the status for people: facts, then the members.
func printStore(w io.Writer, s admin.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Member\t%s (%s): %s\n", s.Name, s.ID, s.Phase)
	if s.Message != "" {
		fmt.Fprintf(t, "Message\t%s\n", s.Message)
	}
	fmt.Fprintf(t, "Leader\t%s, term %d\n", memberName(s, s.Leader), s.Term)
	fmt.Fprintf(t, "Quorum\t%s, %s\n", yes(s.Quorum), votersText(s))
	fmt.Fprintf(t, "Revision\t%s\n", dash(s.Revision != 0, fmt.Sprint(s.Revision)))
	fmt.Fprintf(t, "Size\t%s\n", dash(s.Size != 0, mebibytes(s.Size)))
	fmt.Fprintf(t, "Disk here\t%s for a durable write; heartbeat %s, election %s\n", round(s.Disk.Sync), round(s.Disk.Heartbeat), round(s.Disk.Election))
	fmt.Fprintf(t, "Snapshot\t%s\n", snapshotText(s))
	if s.SnapshotError != "" {
		fmt.Fprintf(t, "\tthe last attempt failed: %s\n", s.SnapshotError)
	}
	if err := t.Flush(); err != nil || len(s.Members) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return printMembers(w, s)
}

func printMembers(w io.Writer, s admin.Status) error {
	if len(s.Members) == 0 {
		return fmt.Errorf("the members are not known here%s", after(": ", s.Message))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "MEMBER\tROLE\tLEADER\tONLINE\tZONE\tADDRESSES\tID\n")
	for _, m := range s.Members {
		role := m.Role
		if m.Witness {
			role += ", witness"
		}
		online := "yes"
		if !m.Online {
			online = "no"
			if !m.LastSeen.IsZero() {
				online += ", seen " + m.LastSeen.UTC().Format(time.RFC3339)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, role, dash(m.Leader, "yes"), online,
			dash(m.Zone != "", m.Zone), dash(len(m.Addresses) > 0, strings.Join(m.Addresses, ",")), m.ID)
	}
	return t.Flush()
}

func snapshotText(s admin.Status) string {
	if s.Snapshot == nil {
		return "none"
	}
	return fmt.Sprintf("%s, revision %d, %s, on %s", s.Snapshot.Time.UTC().Format(time.RFC3339), s.Snapshot.Revision,
		mebibytes(s.Snapshot.Size), memberName(s, s.Snapshot.Member))
}

// memberName is a member's name, or its ID when it has none that is known.
func memberName(s admin.Status, id admin.ID) string {
	if id == 0 {
		return "none"
	}
	if id == s.ID {
		return s.Name
	}
	for _, m := range s.Members {
		if m.ID == id {
			return m.Name
		}
	}
	return id.String()
}

// findMember is the member that an operator means by its name or ID.
func findMember(s admin.Status, text string) (admin.Member, error) {
	var found []admin.Member
	var all []string
	for _, m := range s.Members {
		if m.ID.String() == text {
			return m, nil
		}
		if m.Name == text {
			found = append(found, m)
		}
		all = append(all, fmt.Sprintf("%s (%s)", m.Name, m.ID))
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return admin.Member{}, fmt.Errorf("no member %q; there are %s", text, strings.Join(all, ", "))
	default:
		return admin.Member{}, fmt.Errorf("%d members are named %q: give the ID of one of %s", len(found), text, strings.Join(all, ", "))
	}
}

func storeRemoveCommand(n node) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME|ID",
		Short: "Take a member out of the cluster for good",
		Long: "Take a member out of the cluster for good: one whose server does not come back. Others no longer count on it,\n" +
			"so that fewer members make a majority. A server that was removed joins anew once its data are moved away.",
		Example:           "  cairnctl store remove till-3\n  cairnctl store remove 7f7e4a22e1320d7a",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: n.completeMember,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := n.storeStatus(cmd.Context())
			if err != nil {
				return err
			}
			m, err := findMember(s, args[0])
			switch {
			case err != nil:
				return err
			case m.Leader:
				return fmt.Errorf("%s leads: run 'cairnctl store leader' to have another lead first", m.Name)
			case m.Online && !force:
				return fmt.Errorf("%s is online: stop the store there first (cairnctl stop store), or give --online", m.Name)
			}
			err = n.askStore(cmd.Context(), func(ctx context.Context, c *admin.Client) error { return c.Remove(ctx, m.ID) })
			if err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) is no member any more\n", m.Name, m.ID)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "online", false, "remove it although it is online")
	return cmd
}

func storeLeaderCommand(n node) *cobra.Command {
	return &cobra.Command{
		Use:               "leader [NAME|ID]",
		Short:             "Have another member lead",
		Long:              "Have another member lead: the one that is named, or any voter that is online. Writes wait for a moment.",
		Example:           "  cairnctl store leader\n  cairnctl store leader till-2",
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: n.completeMember,
		RunE: func(cmd *cobra.Command, args []string) error {
			var to admin.ID
			if len(args) > 0 {
				s, err := n.storeStatus(cmd.Context())
				if err != nil {
					return err
				}
				m, err := findMember(s, args[0])
				if err != nil {
					return err
				}
				to = m.ID
			}
			return n.askStore(cmd.Context(), func(ctx context.Context, c *admin.Client) error { return c.Lead(ctx, to) })
		},
	}
}

// completeMember offers the members' names to the shell.
func (n node) completeMember(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), lineTimeout)
	defer cancel()
	var names []string
	if s, err := n.storeStatus(ctx); err == nil && len(args) == 0 {
		for _, m := range s.Members {
			names = append(names, m.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// after puts a separator before a text that is not empty.
func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func round(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }
