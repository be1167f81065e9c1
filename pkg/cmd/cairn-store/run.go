package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// openTimeout bounds the wait for a leader and the schema. Replaying the log
// after a crash is part of it.
const openTimeout = 2 * time.Minute

// run serves until ctx ends.
func run(ctx context.Context, args []string, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("cairn-store", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.String("config", "/run/cairn/config.yaml", "the node's configuration; no key of it concerns the store yet")
	dir := flags.String("dir", "/var/lib/cairn/store", "data directory")
	socket := flags.String("socket", "/run/cairn/store.sock", "unix socket to serve on")
	debug := flags.Bool("debug", false, "log more")
	if err := flags.Parse(args); err != nil {
		return err
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	logrus.SetOutput(stderr) // kine's logger.
	logrus.SetLevel(logrus.WarnLevel)

	m, err := member.Start(member.Options{Dir: *dir, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	connector, err := m.Connector()
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	b, err := store.Open(opening, store.Options{Connector: connector, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	listener, err := store.Listen(ctx, *socket)
	if err != nil {
		return err
	}
	rev, err := b.CurrentRevision(ctx)
	if err != nil {
		return err
	}
	log.Info("store: serving", "socket", *socket, "revision", rev)
	// The socket accepts from Listen on: who is told so may connect.
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("store: notify readiness", "error", err)
	}
	if err := store.NewServer(b).Serve(ctx, listener); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	log.Info("store: stopping")
	return nil
}
