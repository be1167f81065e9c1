package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

const upgradeLong = `Bring another release of Cairn to this machine.

The release is written to the slot that does not run, read back and compared with its signed digests. Then the machine
restarts into it, on trial: when it does not become healthy in time (cairn.health in the configuration), or does not start
at all, the machine goes back to the release it came from by itself and puts the failed version into quarantine. What is
interrupted, by a power cut too, goes on where it was.

Without --to it is the newest version of the machine's channel. The source is cairn.upgrade.source unless --source names
another: https://HOST/PATH, http://HOST/PATH, or file:///PATH for a USB stick.`

func upgradeCommand(n node) *cobra.Command {
	var q upgrade.Request
	var dry bool
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Bring another release to this machine, and look at upgrades", GroupID: "upgrade", Long: upgradeLong,
		Example: "  cairnctl upgrade --dry-run\n  cairnctl upgrade\n  cairnctl upgrade --to 1.4.0 --source file:///mnt/release --no-reboot",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&q.Version, "to", "", "the `VERSION` to go to; empty: the newest of the channel")
	cmd.Flags().StringVar(&q.Source, "source", "", "the release directory's `URL`; empty: the configured one")
	cmd.Flags().BoolVar(&q.NoReboot, "no-reboot", false, "do all but restart: the trial begins at the next start, whenever that is")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done, and how much has to be downloaded")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		return n.upgrade(cmd, q, dry, asJSON)
	}
	cmd.AddCommand(upgradeStatusCommand(n), upgradeHistoryCommand(n), upgradeQuarantineCommand(n))
	return cmd
}

func (n node) upgrade(cmd *cobra.Command, q upgrade.Request, dry, asJSON bool) error {
	c, out := adminapi.NewClient(n.daemon), cmd.OutOrStdout()
	if dry {
		plan, err := c.PlanUpgrade(cmd.Context(), q)
		switch {
		case err != nil:
			return explain(err)
		case asJSON:
			return printJSON(out, plan)
		}
		_, err = io.WriteString(out, plan.String())
		return err
	}
	bar := progressBar{w: cmd.ErrOrStderr(), terminal: isTerminal(cmd.ErrOrStderr())}
	plan, err := c.Upgrade(cmd.Context(), q, bar.show)
	bar.end()
	switch {
	case errors.Is(err, adminapi.ErrRestarts):
		_, err = io.WriteString(out, "The machine restarts into the new version, on trial. \"cairnctl upgrade status\" tells what comes of it.\n")
		return err
	case cmd.Context().Err() != nil:
		return errors.New("interrupted; the upgrade goes on: see \"cairnctl upgrade status\", or end it with \"cairnctl rollback\"")
	case err != nil:
		return explain(err)
	case asJSON:
		return printJSON(out, plan)
	case plan.Current:
		_, err = fmt.Fprintf(out, "This machine runs %s already.\n", plan.To.Version)
	case q.NoReboot:
		_, err = fmt.Fprintf(out, "Version %s starts, on trial, at the next start of the machine: \"cairnctl reboot\".\n", plan.To.Version)
	default:
		_, err = fmt.Fprintf(out, "The machine restarts into version %s, on trial. \"cairnctl upgrade status\" tells what comes of it.\n", plan.To.Version)
	}
	return err
}

func upgradeStatusCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what runs, what is on trial, and what came of the last upgrade",
		Example: "  cairnctl upgrade status\n  cairnctl upgrade status --output json",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
		defer cancel()
		st, err := adminapi.NewClient(n.daemon).UpgradeStatus(ctx)
		switch {
		case err != nil:
			return explain(err)
		case asJSON:
			return printJSON(cmd.OutOrStdout(), st)
		}
		return printUpgradeStatus(cmd.OutOrStdout(), st)
	}
	return cmd
}

func printUpgradeStatus(w io.Writer, st upgrade.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	how := "confirmed"
	if st.Trial == st.Slot {
		how = fmt.Sprintf("on trial, %d more tries", st.TriesLeft)
	}
	fmt.Fprintf(t, "Running\t%s, Kubernetes %s, slot %s (%s)\n", st.Running.Version, st.Running.Kubernetes, st.Slot, how)
	if st.Trial != "" && st.Trial != st.Slot {
		fmt.Fprintf(t, "Next start\tslot %s, on trial\n", st.Trial)
	}
	if st.Doing != "" {
		fmt.Fprintf(t, "Now\t%s\n", st.Doing)
	}
	if st.Progress != nil {
		fmt.Fprintf(t, "Progress\t%s\n", st.Progress)
	}
	if st.Judging != nil {
		fmt.Fprintf(t, "Trial\t%s, %v left\n", st.Judging.Text, st.Judging.Left.Round(1e9))
	}
	if st.Open != nil {
		fmt.Fprintf(t, "Upgrade\t%s\n", st.Open)
	}
	for _, q := range st.Held {
		fmt.Fprintf(t, "Quarantine\t%s: %s\n", q.Version, q.Reason)
	}
	if st.Problem != "" {
		fmt.Fprintf(t, "Problem\t%s\n", st.Problem)
	}
	if err := t.Flush(); err != nil || st.Last == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nThe last upgrade:\n%s", st.Last.Describe())
	return err
}

func upgradeHistoryCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "history [ID]", Short: "List the last upgrades, or show one with all that was found",
		Example:           "  cairnctl upgrade history\n  cairnctl upgrade history 000012-1.4.0",
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: n.completeAttempt,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		all, err := n.attempts(cmd.Context())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if len(args) == 0 {
			if asJSON {
				return printJSON(out, all)
			}
			_, err := io.WriteString(out, history.Table(all))
			return err
		}
		i := slices.IndexFunc(all, func(a history.Attempt) bool { return a.ID == args[0] })
		switch {
		case i < 0:
			return fmt.Errorf("no upgrade %s is kept; see 'cairnctl upgrade history'", args[0])
		case asJSON:
			return printJSON(out, all[i])
		}
		_, err = io.WriteString(out, all[i].Describe())
		return err
	}
	return cmd
}

func (n node) attempts(ctx context.Context) ([]history.Attempt, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	all, err := adminapi.NewClient(n.daemon).Attempts(ctx)
	return all, explain(err)
}

func (n node) completeAttempt(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, err := n.attempts(cmd.Context())
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, a := range all {
		ids = append(ids, a.ID)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func upgradeQuarantineCommand(n node) *cobra.Command {
	var release string
	cmd := &cobra.Command{
		Use: "quarantine", Short: "List the versions that failed here, or let one be tried again",
		Long:    "List the versions that failed on this machine. None of them is tried again before --clear says so.",
		Example: "  cairnctl upgrade quarantine\n  cairnctl upgrade quarantine --clear 1.4.0",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&release, "clear", "", "let `VERSION` be tried again")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
		defer cancel()
		c := adminapi.NewClient(n.daemon)
		if release != "" {
			if err := c.ClearQuarantine(ctx, release); err != nil {
				return explain(err)
			}
		}
		st, err := c.UpgradeStatus(ctx)
		switch {
		case err != nil:
			return explain(err)
		case asJSON:
			return printJSON(cmd.OutOrStdout(), st.Held)
		}
		_, err = io.WriteString(cmd.OutOrStdout(), history.QuarantineTable(st.Held))
		return err
	}
	return cmd
}

const rollbackLong = `Go back to the release that ran before.

On trial that ends the trial at once. From a confirmed release the one before it is tried, and must become healthy as any
other; if it does not, the machine comes back. The version that is left goes into quarantine: it is not taken again before
"cairnctl upgrade quarantine --clear VERSION".`

func rollbackCommand(n node) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: "rollback", Short: "Go back to the release that ran before", GroupID: "upgrade", Long: rollbackLong,
		Example: "  cairnctl rollback\n  cairnctl rollback --reason 'the receipt printer does not print'",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().StringVar(&why, "reason", "by command", "`TEXT` to keep in the history")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		restart, err := adminapi.NewClient(n.daemon).RollBack(cmd.Context(), why)
		if hungUp(err) {
			restart, err = true, nil // the machine goes down faster than it answers
		}
		if err != nil {
			return explain(err)
		}
		text := "The machine restarts into the release before.\n"
		if !restart {
			text = "What was to start next is disarmed; this release runs on.\n"
		}
		_, err = io.WriteString(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

// progressBar shows an upgrade's progress: one line that changes on a terminal, and elsewhere a line for each step.
type progressBar struct {
	w        io.Writer
	terminal bool
	said     string // step that was told last
	width    int    // of the line on the terminal
}

func (b *progressBar) show(p update.Progress) {
	if !b.terminal {
		if p.Step != b.said {
			fmt.Fprintf(b.w, "%s\n", p.Step)
		}
		b.said = p.Step
		return
	}
	line := p.Step
	if p.Total > 0 {
		const cells = 30
		full := int(cells * p.Done / p.Total)
		line = fmt.Sprintf("%-24s [%s%s] %3d %%  %s downloaded", p.Step, strings.Repeat("#", full), strings.Repeat(".", cells-full),
			100*p.Done/p.Total, history.Bytes(p.Transfer.Downloaded))
	}
	fmt.Fprintf(b.w, "\r%-*s", b.width, line)
	b.width = len(line)
}

func (b *progressBar) end() {
	if b.terminal && b.width > 0 {
		fmt.Fprintln(b.w)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
