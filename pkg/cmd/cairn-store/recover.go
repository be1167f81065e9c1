package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cairn-os/cairn/pkg/store/cluster"
)

const recoverUsage = `usage: cairn-store recover [--dir DIR] [--dry-run] [--yes]

For a store that lost the majority of its voters for good: makes this server the only member of a
new store that holds this server's data. The store must not run. If the others may come back, start
them instead: nothing is lost then.

What this server has not seen is lost. So run it with --dry-run on each server that is left, and for
good on the one with the highest term, and of those the one with the highest index. The data are
kept, in DIR/damaged.

Flags:
`

// recoverStore makes a survivor the only member.
func recoverStore(ctx context.Context, args []string, t terminal) (err error) {
	flags := newFlags("recover", recoverUsage, t.err)
	dir := flags.String("dir", defaultDir, "data directory")
	dry := flags.Bool("dry-run", false, "say what would be done, and change nothing")
	conf := flags.String("config", defaultConfig, "the node's configuration")
	yes := flags.Bool("yes", false, "do it without a question")
	if err := parseAll(flags, args); err != nil {
		return err
	}
	if err := checkOwn(*conf); err != nil {
		return err
	}
	if !*dry {
		finished, err := cluster.FinishReplacing(*dir)
		if err != nil {
			return err
		}
		if finished {
			fmt.Fprintf(t.out, "A recovery or restore in %s that was interrupted had come to its end, and is finished now. Start the store.\n", *dir)
			return nil
		}
	}
	r, err := cluster.PrepareRecovery(ctx, *dir, quiet(t.err))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Discard()) }()
	printRecovery(t.out, *dir, r.Plan)
	if *dry {
		fmt.Fprintln(t.out, "Nothing was changed.")
		return nil
	}
	if err := t.confirm(ctx, *yes, "recover"); err != nil {
		return err
	}
	done, err := r.Apply(ctx)
	if err != nil {
		return err
	}
	printReplaced(t.out, done)
	printOthers(t.out, r.Plan.Others)
	return nil
}

func printRecovery(w io.Writer, dir string, p cluster.RecoveryPlan) {
	fmt.Fprintf(w, "Member    %s\nLog       ends with term %d, index %d\nRevision  %d, %d keys, %.1f MiB (read out at %s)\n", p.Member, p.Term, p.Index,
		p.Snapshot.Revision, p.Snapshot.Keys, float64(p.Snapshot.Size)/(1<<20), p.Snapshot.Time.UTC().Format(time.RFC3339))
	for _, f := range p.Findings {
		fmt.Fprintf(w, "Found     %s\n", f)
	}
	switch len(p.Others) {
	case 0:
		fmt.Fprintln(w, "Others    none known")
	default:
		fmt.Fprintf(w, "Others    %s\n", names(p.Others))
	}
	fmt.Fprintf(w, "\nRecovering in %s:\n", dir)
	fmt.Fprintln(w, "- makes this server the only member of a new store with these keys, under a new ID")
	if len(p.Others) > 0 {
		fmt.Fprint(w, "- loses what only the others have: changes that a majority without this server accepted. How many cannot be\n"+
			"  told from here, for they are not asked. Compare term and index with those of a dry run on each that is left:\n"+
			"  recover where the term is highest, and of those where the index is highest\n"+
			"- leaves the others behind: THEIR STORES MUST NOT RUN AGAIN WITH THEIR DATA. A majority of them would serve on by itself\n")
	}
	fmt.Fprintf(w, "- sets the data here aside, in %s/damaged, and keeps a snapshot of them in %[1]s/snapshots\n\n", dir)
}
