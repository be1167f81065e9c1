package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/build/signing"
)

func releaseKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make and change the keys that sign releases",
		Long: `Make and change the keys that sign releases.

Root's keys say which the others are. They are needed only for that: keep each on a medium of its own, away from the
network. The keys of targets, snapshot and timestamp stay where releases are made (./build.sh release --keys DIR).

A change takes two steps. "rotate" prepares it; "sign-root" signs it with root keys, on as many machines as it takes,
until the threshold of the keys before and after the change is reached. Copy DIR between them: it holds nothing secret but
files that end in .key. Machines follow the change with the next release that is published.`,
		Example: `  cairnctl release keys init keys --roots 3 --threshold 2   then move keys/root-*.key away
  ./build.sh release --keys keys
  cairnctl release keys rotate keys --role timestamp        a key was lost, or may have been copied
  cairnctl release keys sign-root keys --key /media/a/root-1.key --key /media/b/root-2.key`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(releaseKeysInitCommand(), releaseKeysRotateCommand(), releaseKeysSignCommand())
	return cmd
}

func releaseKeysInitCommand() *cobra.Command {
	var roots, threshold int
	cmd := &cobra.Command{
		Use:     "init DIR",
		Short:   "Make all keys",
		Example: "  cairnctl release keys init keys --roots 3 --threshold 2",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := signing.Init(args[0], roots, threshold, time.Now()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "Made the keys in %s. Move root-1.key to root-%d.key to media of their own: any %d of them can change all keys.\n"+
				"Images that are built with --keys trust what these keys sign.\n", args[0], roots, threshold)
			return err
		},
	}
	cmd.Flags().IntVar(&roots, "roots", 3, "how many root keys to make")
	cmd.Flags().IntVar(&threshold, "threshold", 2, "how many of them must sign a change")
	return cmd
}

func releaseKeysRotateCommand() *cobra.Command {
	var role, replaced, made string
	cmd := &cobra.Command{
		Use:   "rotate DIR",
		Short: "Prepare the change of a key, or later ends of root's metadata",
		Long: "Prepare the change of a key: a new one is made, and sign-root makes it count. Several changes can be prepared before\n" +
			"they are signed. Without --role no key changes, and root's metadata only get a later end.",
		Example: "  cairnctl release keys rotate keys --role targets\n" +
			"  cairnctl release keys rotate keys --role root --replace /media/a/root-1.key --new /media/d/root-4.key",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (role == "root") != (replaced != "" && made != "") {
				return usageError{fmt.Errorf("--role root needs --replace and --new, and no other role takes them")}
			}
			err := signing.Renew(args[0], time.Now())
			if role != "" {
				err = signing.Rotate(args[0], role, replaced, made, time.Now())
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Prepared. It counts when enough root keys have signed: cairnctl release keys sign-root %s --key FILE\n", args[0])
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "whose key changes: root, targets, snapshot or timestamp")
	f.StringVar(&replaced, "replace", "", "root key to replace: its `FILE`, or its ID if the file is lost")
	f.StringVar(&made, "new", "", "`FILE` for the new root key")
	return cmd
}

func releaseKeysSignCommand() *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:     "sign-root DIR",
		Short:   "Sign a prepared change with root keys",
		Example: "  cairnctl release keys sign-root keys --key /media/a/root-1.key --key /media/b/root-2.key",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			missing, err := signing.SignRoot(args[0], keys...)
			if err != nil {
				return err
			}
			if missing != nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Signed, but more is needed:\n%v\n", missing)
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "Signed by enough keys: the change counts from the next release on.")
			return err
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "`FILE` of a root key; may come several times")
	if err := cmd.MarkFlagRequired("key"); err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}
