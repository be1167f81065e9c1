// Command peerinit is PID 1 of a node in namespaces that runs vanilla
// Kubernetes, for "build.sh bench cluster".
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/bench/cluster/peer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	defer stop()
	if err := peer.Main(ctx, os.Args[1:]); err != nil && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "peerinit: %v\n", err)
		os.Exit(1)
	}
}
