// Command mkimage builds Cairn's images, starts them and tests them. build.sh
// runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/build/progress"
	"github.com/cairn-os/cairn/pkg/nodens"
)

func main() {
	nodens.Child() // a machine in namespaces begins as a copy of this program
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx = progress.NewContext(ctx, progress.New(os.Stdout))
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "mkimage: %v\n", err)
		os.Exit(1)
	}
}
