package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/lane"
)

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "build.sh",
		Short:         "Build Cairn's images, start them and test them",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(imageCommand(), releaseCommand(), runCommand(), testCommand(), benchCommand())
	return root
}

func imageCommand() *cobra.Command {
	var o image.Options
	cmd := &cobra.Command{
		Use:     "image [TARGET]",
		Short:   "Build the image of a target into out/TARGET/",
		Example: "  ./build.sh image\n  ./build.sh image amd64 --out /tmp/out",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.Target = args[0]
			}
			b, err := image.New(cmd.Context(), o)
			if err != nil {
				return err
			}
			out, err := b.Image(cmd.Context(), true)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), out.Summary)
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Out, "out", "out", "directory of the outputs")
	cmd.Flags().StringVar(&o.Version, "version", "", "version to stamp the image with (default: the tree's own)")
	cmd.Flags().StringVar(&o.Keys, "keys", "", "folder of the keys whose releases the image trusts (default: development keys of this machine)")
	return cmd
}

func testCommand() *cobra.Command {
	var run string
	cmd := &cobra.Command{
		Use:   "test [unit|native|vm|chaos]",
		Short: "Run the tests: one lane, or all but chaos",
		Long: "Run the tests: one lane, or all of them but chaos.\n\n" +
			"  unit    values, formats, state machines, fuzz seeds; static checks\n" +
			"  native  machines in namespaces of this one; needs root\n" +
			"  vm      the real image in QEMU; minutes, tens of minutes without KVM\n" +
			"  chaos   the store of three nodes under faults, judged by porcupine; needs root, half an hour.\n" +
			"          CAIRN_CHAOS_SEED=N and CAIRN_CHAOS_RUNS=N repeat a run; the unit lane runs it briefly",
		Example: "  ./build.sh test\n  ./build.sh test unit\n  ./build.sh test vm --run Selector\n" +
			"  CAIRN_CHAOS_SEED=17 CAIRN_CHAOS_RUNS=1 ./build.sh test chaos --run TestCluster",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: slices.Concat(lane.Names, lane.Apart),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			b, err := image.New(ctx, image.Options{})
			if err != nil {
				return err
			}
			o := lane.Options{Lanes: args, Run: run, Output: cmd.OutOrStdout()}
			if o.StoreEnv, err = b.StoreEnv(ctx); err != nil {
				return err
			}
			if o.Images, err = filepath.Abs(b.Dir()); err != nil {
				return err
			}
			if len(args) == 0 || args[0] != "unit" && !slices.Contains(lane.Apart, args[0]) {
				if _, err := b.Image(ctx, len(args) == 0); err != nil {
					return err
				}
			}
			return lane.Run(ctx, o)
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "only tests that match this pattern, as in go test -run")
	cmd.SetOut(os.Stdout)
	return cmd
}
