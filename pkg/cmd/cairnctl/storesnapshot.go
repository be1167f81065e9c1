package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

func storeSnapshotCommand(n node) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Take a snapshot now",
		Long: "Take a snapshot now. It is kept on the leader, beside those that are taken every six hours; keep copies on another\n" +
			"machine. It is an etcd's snapshot as well.",
		Example: "  cairnctl store snapshot\n  cairnctl store snapshot --output-file /tmp/before-the-change.db",
		Args:    usage(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return n.takeSnapshot(cmd, file) },
	}
	cmd.Flags().StringVar(&file, "output-file", "", "also copy it to `FILE`, which must not exist")
	return cmd
}

func storeExportCommand(n node) *cobra.Command {
	return &cobra.Command{
		Use:   "export FILE",
		Short: "Take a snapshot and copy it to a file that an etcd can be made of",
		Long: "Take a snapshot and copy it to FILE, which must not exist. An etcd is made of it by\n\n" +
			"  etcdutl snapshot restore FILE --data-dir DIR\n\n" +
			"Stop the API servers before, or what is written after the snapshot stays behind.",
		Example: "  cairnctl store export /tmp/state.db",
		Args:    usage(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return n.takeSnapshot(cmd, args[0]) },
	}
}

// takeSnapshot has the leader take one and copies it to file, if there is one.
func (n node) takeSnapshot(cmd *cobra.Command, file string) error {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s exists: name a file that does not", file)
	}
	return n.askStore(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
		s, err := c.Take(ctx)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		on := s.Member.String()
		if st, err := c.Status(ctx); err == nil {
			on = memberName(st, s.Member)
		}
		fmt.Fprintf(out, "Snapshot %s on %s: revision %d, %d keys, %s\n", s.Name, on, s.Revision, s.Keys, mebibytes(s.Size))
		if file == "" {
			return nil
		}
		if err := download(ctx, c, s, file); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "Copied to %s, SHA-256 %s at its end\n", file, s.Hash)
		return err
	})
}

// download writes a snapshot to file, which gets its name when all is there.
func download(ctx context.Context, c *admin.Client, s admin.Snapshot, file string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = c.Download(ctx, s, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// A link, for it does not replace a file that came meanwhile.
	if err := os.Link(f.Name(), file); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists: name a file that does not", file)
	} else if err != nil {
		return os.Rename(f.Name(), file) // FAT has no links.
	}
	return os.Remove(f.Name())
}

func storeSnapshotsCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshots",
		Short: "List the snapshots on all members",
		Long: "List the snapshots on all members that are online. Each stays on the member that led when it was taken, in\n" +
			"/var/lib/cairn/store/snapshots.",
		Example: "  cairnctl store snapshots",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		return n.askStore(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			s, all, err := listSnapshots(ctx, c)
			if asJSON {
				return errors.Join(err, printJSON(cmd.OutOrStdout(), all))
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprint(t, "SNAPSHOT\tMEMBER\tTAKEN\tREVISION\tSIZE\n")
			for _, one := range all {
				fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", one.Name, memberName(s, one.Member), one.Time.UTC().Format(time.RFC3339), one.Revision, mebibytes(one.Size))
			}
			return errors.Join(err, t.Flush())
		})
	}
	return cmd
}

// listSnapshots asks each member that is online. One that does not answer is
// an error beside what the others have.
func listSnapshots(ctx context.Context, c *admin.Client) (admin.Status, []admin.Snapshot, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return s, nil, err
	}
	all, err := c.Snapshots(ctx, 0)
	problems := []error{err}
	for _, m := range s.Members {
		if m.ID == s.ID || !m.Online {
			continue
		}
		theirs, err := c.Snapshots(ctx, m.ID)
		if err != nil {
			problems = append(problems, fmt.Errorf("snapshots on %s: %w", m.Name, err))
		}
		all = append(all, theirs...)
	}
	return s, all, errors.Join(problems...)
}
