package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/status"
)

func statusCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show slot, release, node, boot phases and processes",
		GroupID: "look",
		Example: "  cairnctl status\n  cairnctl status --output json | jq .node.ready",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		st, err := n.status(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(st)
		}
		return printStatus(cmd.OutOrStdout(), st, n.storeLine(cmd.Context()))
	}
	return cmd
}

// roleWitness is a machine without a Node.
const roleWitness = "witness"

// printStatus writes the status for people: facts, then the phases, then the processes. store is what is known of the
// store, if it answers.
func printStatus(w io.Writer, st status.Status, store string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Host\t%s, up %s\n", st.Hostname, st.UptimeS)
	if st.Role != "" {
		fmt.Fprintf(t, "Role\t%s%s\n", st.Role, after(" of the cluster at ", st.Server))
	}
	if st.Role != roleWitness {
		fmt.Fprintf(t, "Node\t%s\n", nodeText(st.Node))
	}
	if store != "" {
		fmt.Fprintf(t, "Store\t%s\n", store)
	}
	fmt.Fprintf(t, "Slot\t%s\n", slotText(st.Slot))
	fmt.Fprintf(t, "Release\t%s, Kubernetes %s, Linux %s\n", known(st.Release.Version), known(st.Release.Kubernetes), known(st.Release.Kernel))
	fmt.Fprintf(t, "Addresses\t%s\n", addressText(st.Addresses))
	if st.Clock != nil {
		fmt.Fprintf(t, "Clock\t%s\n", clockText(*st.Clock))
	}
	fmt.Fprintf(t, "\nPROCESS\tSTATE\tPID\tREADY AT\tRESTARTS\tMEMORY\tLAST EXIT\n")
	for _, p := range st.Processes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", p.Name, p.State, dash(p.PID != 0, fmt.Sprint(p.PID)),
			dash(p.ReadyS != 0, p.ReadyS.String()), p.Restarts, dash(p.RSSBytes != 0, mebibytes(p.RSSBytes)), dash(p.LastExit != "", p.LastExit))
	}
	said := false
	for _, p := range st.Processes {
		if p.Message == "" || p.State == stateReady {
			continue
		}
		if !said {
			fmt.Fprint(t, "\nWAITING\tFOR\n")
		}
		said = true
		fmt.Fprintf(t, "%s\t%s\n", p.Name, p.Message)
	}
	fmt.Fprintf(t, "\nPHASE\tAT\tTOOK\tRESULT\n")
	for _, p := range st.Phases {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, p.StartS, p.DurationS, phaseResult(p))
	}
	if len(st.Timeline) > 0 {
		fmt.Fprint(t, "\nSINCE POWER-ON\n")
	}
	for _, m := range st.Timeline {
		fmt.Fprintf(t, "%s\t%s\n", m.AtS, m.Name)
	}
	return t.Flush()
}

func nodeText(n *status.Node) string {
	switch {
	case n == nil:
		return "unknown: cairnd is down"
	case n.Ready:
		return n.Name + " is Ready"
	default:
		return fmt.Sprintf("%s is not Ready: %s", n.Name, strings.Join(nonEmpty(n.Reason, n.Message), ": "))
	}
}

func slotText(s status.Slot) string {
	if s.Name == "" {
		return "none"
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.State)
}

func addressText(as []status.Address) string {
	var out []string
	for _, a := range as {
		out = append(out, fmt.Sprintf("%s (%s)", a.Prefix, a.Link))
	}
	return dash(len(out) > 0, strings.Join(out, ", "))
}

func clockText(c status.Clock) string {
	switch {
	case c.Synchronized:
		return fmt.Sprintf("by %s, was off by %.3fs", c.Server, float64(c.OffsetS))
	case c.Error != "":
		return "not synchronised: " + strings.ReplaceAll(c.Error, "\n", "; ")
	default:
		return "not synchronised yet"
	}
}

func phaseResult(p status.Phase) string {
	switch {
	case p.Error != "":
		return "failed: " + p.Error
	case p.Skipped:
		return "skipped"
	default:
		return "ok"
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func dash(ok bool, s string) string {
	if !ok {
		return "-"
	}
	return s
}

func known(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func nonEmpty(list ...string) []string {
	var out []string
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
