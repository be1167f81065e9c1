package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/store/cluster"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/snapshot"
)

// Where a node's store and configuration are.
const (
	defaultDir    = "/var/lib/cairn/store"
	defaultConfig = "/run/cairn/config.yaml"
	defaultTLS    = "/var/lib/cairn/server/tls"
)

const restoreUsage = `usage: cairn-store restore --from FILE [--dir DIR] [--yes]

Makes this server the only member of a new store that holds what is in the snapshot FILE:
one that a store took, or one of an etcd ("etcdctl snapshot save"). The store must not run.
The data that are here are kept, in DIR/damaged.

Flags:
`

// restore replaces a server's data by a snapshot.
func restore(ctx context.Context, args []string, t terminal) error {
	flags := newFlags("restore", restoreUsage, t.err)
	dir := flags.String("dir", defaultDir, "data directory")
	from := flags.String("from", "", "snapshot to restore")
	conf := flags.String("config", defaultConfig, "the node's configuration")
	yes := flags.Bool("yes", false, "do it without a question")
	if err := parseAll(flags, args); err != nil {
		return err
	}
	if err := checkOwn(*conf); err != nil {
		return err
	}
	if *from == "" {
		return errors.New("restore: --from FILE is needed; see cairn-store restore --help")
	}
	// A plan is made of what is there after an earlier one.
	if _, err := cluster.FinishReplacing(*dir); err != nil {
		return err
	}
	plan, err := cluster.PlanRestore(*dir, *from)
	if err != nil {
		return err
	}
	printRestore(t.out, *dir, plan)
	if err := t.confirm(ctx, *yes, "restore"); err != nil {
		return err
	}
	done, err := cluster.Restore(ctx, *dir, *from, quiet(t.err))
	if err != nil {
		return err
	}
	printReplaced(t.out, done)
	printOthers(t.out, plan.Others)
	return nil
}

func printRestore(w io.Writer, dir string, p cluster.RestorePlan) {
	printSnapshot(w, p.Snapshot)
	fmt.Fprintf(w, "\nRestoring it in %s:\n", dir)
	if p.Former == 0 {
		fmt.Fprintln(w, "- makes a new store; there is no data here that could be read")
	} else {
		fmt.Fprintf(w, "- sets the data of member %s aside, in %s/damaged\n", p.Former, dir)
		fmt.Fprintf(w, "- loses every change after revision %d\n", p.Snapshot.Revision)
	}
	if len(p.Newer) > 0 {
		fmt.Fprintf(w, "- takes an older state than there is a snapshot of: %s (revision %d)\n", p.Newer[0].Path, p.Newer[0].Revision)
	}
	fmt.Fprintf(w, "- lets revisions go on at least %d higher, so that no client mistakes old for new\n", snapshot.DefaultBump)
	if len(p.Others) > 0 {
		fmt.Fprintf(w, "- leaves %s behind: STOP THE STORE THERE FIRST. They would serve on with what they have\n", names(p.Others))
	}
	fmt.Fprintln(w)
}

func printReplaced(w io.Writer, done cluster.Replaced) {
	fmt.Fprintf(w, "Restored %d keys; the store begins with revision %d, as member %s.\n", done.Keys, done.Revision, done.Member)
	if done.SetAside != "" {
		fmt.Fprintf(w, "The former data are in %s; remove them when nothing is missing.\n", done.SetAside)
	}
	if done.Moved > 0 {
		fmt.Fprintf(w, "%d keys, written by an etcd together with others in one transaction, have new revisions.\n", done.Moved)
	}
	if done.LostLeases > 0 {
		fmt.Fprintf(w, "%d keys had a lease that the snapshot does not know, and will not expire.\n", done.LostLeases)
	}
}

// printOthers says what to do with the former cluster's members.
func printOthers(w io.Writer, others []peer.Entry) {
	if len(others) == 0 {
		return
	}
	fmt.Fprintf(w, "The other servers (%s) do not belong to this store any more. On each, with the store stopped, move\n"+
		"%s/member away, and start it: it joins anew and gets its data from here.\n", names(others), defaultDir)
}

func names(entries []peer.Entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, fmt.Sprintf("%s at %s", e.Name, strings.Join(e.Addresses, " and ")))
	}
	return strings.Join(all, ", ")
}

const verifyUsage = `usage: cairn-store verify FILE

Reads all of the snapshot FILE and compares it with the hash at its end, and says what is in it.
`

func verify(args []string, t terminal) error {
	flags := newFlags("verify", verifyUsage, t.err)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("verify: one FILE is needed; see cairn-store verify --help")
	}
	info, err := snapshot.Verify(flags.Arg(0))
	if err != nil {
		return err
	}
	printSnapshot(t.out, info)
	return nil
}

func printSnapshot(w io.Writer, i snapshot.Info) {
	fmt.Fprintf(w, "Snapshot  %s, whole\nTaken     %s\nRevision  %d\nKeys      %d\nSize      %.1f MiB\nSHA-256   %s\n",
		i.Path, i.Time.UTC().Format(time.RFC3339), i.Revision, i.Keys, float64(i.Size)/(1<<20), i.Hash)
}

// checkOwn refuses to work on a store that the node does not use.
func checkOwn(path string) error {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	if c.Cairn.Datastore.Kind() != config.Own {
		return fmt.Errorf("%s: cairn.datastore.endpoint is set: this node's state is in a datastore elsewhere", path)
	}
	return nil
}

func newFlags(name, text string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet("cairn-store "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, text)
		flags.PrintDefaults()
	}
	return flags
}

func parseAll(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s: unexpected argument %q", flags.Name(), flags.Arg(0))
	}
	return nil
}

// quiet lets warnings through: the commands say themselves what they do.
func quiet(stderr io.Writer) *slog.Logger {
	logrus.SetOutput(stderr) // kine's logger.
	logrus.SetLevel(logrus.WarnLevel)
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
