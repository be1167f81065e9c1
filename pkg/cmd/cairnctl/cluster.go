package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

// soon is how much of a certificate's life is worth a line of its own: it should have been renewed long before.
const soon = 30 * 24 * time.Hour

func clusterCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "cluster", Short: "Look at the cluster as a whole", GroupID: "cluster",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(clusterStatusCommand(n))
	return cmd
}

func clusterStatusCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show servers, nodes, store, certificates and the newest snapshot",
		Long: "Show servers, nodes, store, certificates and the newest snapshot, as this server sees them, and how far a replacement of\n" +
			"the authorities is.\n" +
			"The exit code is 1 when something needs a person.",
		Example: "  cairnctl cluster status\n  cairnctl cluster status --output json | jq '.servers[] | select(.reachable | not)'",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		var s admin.Cluster
		err = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
			s, err = c.Cluster(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), s)
		} else {
			err = printCluster(cmd.OutOrStdout(), s)
		}
		if err != nil {
			return err
		}
		if wrong := clusterProblems(s); len(wrong) > 0 {
			return fmt.Errorf("the cluster needs a look: %s", strings.Join(wrong, "; "))
		}
		return nil
	}
	return cmd
}

// clusterProblems are what a person should look at.
func clusterProblems(s admin.Cluster) []string {
	wrong := append([]string{}, s.Problems...)
	for _, v := range s.Servers {
		if !v.Reachable {
			wrong = append(wrong, "server "+serverName(v)+" is out of reach")
		}
	}
	for _, k := range s.Nodes {
		if !k.Ready {
			wrong = append(wrong, "node "+k.Name+" is not Ready")
		}
	}
	if len(s.Store.Members) > 0 && !s.Store.Quorum {
		wrong = append(wrong, "the store has no quorum")
	}
	if text := rotationProblem(s.Rotation, time.Now()); text != "" {
		wrong = append(wrong, text)
	}
	for _, c := range s.Certificates {
		if c.Left <= 0 {
			wrong = append(wrong, fmt.Sprintf("certificate %s of %s has expired", c.Name, c.Node))
		}
	}
	return wrong
}

func printCluster(w io.Writer, s admin.Cluster) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(s.Store.Members) > 0 {
		fmt.Fprintf(t, "Quorum\t%s, %s\n", yes(s.Store.Quorum), votersText(s.Store))
		fmt.Fprintf(t, "Leader\t%s\n", memberName(s.Store, s.Store.Leader))
		fmt.Fprintf(t, "Snapshot\t%s\n", snapshotText(s.Store))
	}
	fmt.Fprintf(t, "Controllers\t%s\n", dash(s.Controllers != "", "on "+s.Controllers))
	printRotation(t, s.Rotation, time.Now())
	if len(s.Certificates) > 0 {
		first := s.Certificates[0] // the first to expire
		fmt.Fprintf(t, "Certificates\t%d, the first (%s of %s) ends in %s\n", len(s.Certificates), first.Name, first.Node, span(first.Left))
	}
	fmt.Fprint(t, "\nSERVER\tADDRESS\tREACHABLE\tKUBERNETES\n")
	for _, v := range s.Servers {
		reachable := yes(v.Reachable)
		if v.Problem != "" {
			reachable += ": " + v.Problem
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", serverName(v), v.Address, reachable, dash(v.Version != "", v.Version))
	}
	if len(s.Store.Members) > 0 {
		fmt.Fprint(t, "\nMEMBER\tROLE\tLEADER\tONLINE\n")
	}
	for _, m := range s.Store.Members {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", m.Name, m.Role, dash(m.Leader, "yes"), yes(m.Online))
	}
	fmt.Fprint(t, "\nNODE\tROLES\tREADY\tKUBELET\tRELEASE\tADDRESSES\tAGE\n")
	for _, k := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, dash(len(k.Roles) > 0, strings.Join(k.Roles, ",")), yes(k.Ready),
			k.Kubelet, dash(k.Version != "", k.Version), strings.Join(k.Addresses, ","), span(k.Age))
	}
	for i, c := range s.Certificates {
		if c.Left > soon {
			break
		}
		if i == 0 {
			fmt.Fprint(t, "\nCERTIFICATE\tOF\tENDS IN\n")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.Node, span(c.Left))
	}
	for i, p := range s.Problems {
		if i == 0 {
			fmt.Fprint(t, "\nPROBLEMS\n")
		}
		fmt.Fprintf(t, "%s\n", p)
	}
	return t.Flush()
}

func serverName(v admin.Server) string {
	if v.Name == "" {
		return v.Address
	}
	return v.Name
}

// span is a duration for people: its two largest units.
func span(d time.Duration) string {
	if d < 0 {
		return "-" + span(-d)
	}
	for _, u := range []struct {
		size time.Duration
		name string
		next time.Duration
		sub  string
	}{{24 * time.Hour, "d", time.Hour, "h"}, {time.Hour, "h", time.Minute, "m"}, {time.Minute, "m", time.Second, "s"}} {
		if d >= u.size {
			text := fmt.Sprintf("%d%s", d/u.size, u.name)
			if rest := d % u.size / u.next; rest > 0 {
				text += fmt.Sprintf("%d%s", rest, u.sub)
			}
			return text
		}
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
