package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/build/image"
)

func releaseCommand() *cobra.Command {
	var o image.Options
	var r image.ReleaseOptions
	cmd := &cobra.Command{
		Use:   "release [TARGET]",
		Short: "Build the image of a target and add it to its release directory",
		Long: "Build the image of a target and add it to its release directory, out/TARGET/release: what machines upgrade from, on\n" +
			"any web server or USB stick. The directory is signed; it may hold several versions.\n\n" +
			"Deltas are made against the newest other version in the directory, and in each that --base names. A version that\n" +
			"is there already is replaced only if it is a pre-release, such as 1.2.0-rc.1.\n\n" +
			"Without --keys this machine's development keys sign, which are made at first use and trusted by images that are\n" +
			"built here. For keys of your own see cairnctl release keys --help; build all images with them.",
		Example: "  ./build.sh release\n  ./build.sh release --version 1.2.0 --keys keys --base /srv/cairn/1.1.0\n" +
			"  ./build.sh release --version 1.3.0 --keys keys --channel stable --floor 1.2.0 --from 1.1.0",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.Target = args[0]
			}
			b, err := image.New(cmd.Context(), o)
			if err != nil {
				return err
			}
			report, err := b.Release(cmd.Context(), r)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), report)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Out, "out", "out", "directory of the outputs")
	f.StringVar(&o.Version, "version", "", "version of the release (default: the tree's own)")
	f.StringVar(&o.Keys, "keys", "", "folder of the keys that sign (default: development keys of this machine)")
	f.StringVar(&r.Channel, "channel", "stable", "channel whose newest version this becomes; empty for none")
	f.StringVar(&r.Floor, "floor", "", "version below which no machine of the channel may go down (default: as before)")
	f.StringVar(&r.From, "from", "", "oldest version from which machines may come here directly (default: any)")
	f.StringArrayVar(&r.Bases, "base", nil, "release directory with an earlier version that machines come from; may come several times")
	return cmd
}
