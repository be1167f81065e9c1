// Command cairn-store serves Kubernetes' state as an etcd-compatible endpoint
// on a unix socket. The state lives in a dqlite database. Its other commands
// verify and restore snapshots, and recover a store that lost its majority.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	t := terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, person: term.IsTerminal(int(os.Stdin.Fd()))}
	if err := run(ctx, os.Args[1:], t); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cairn-store:", err)
		os.Exit(1)
	}
}
