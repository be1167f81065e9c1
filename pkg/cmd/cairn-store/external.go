package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/store/external"
)

// loadConfig reads the node's configuration; where there is none it is empty.
func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, config.ErrNoConfig) {
		return &config.Config{}, nil
	}
	return c, err
}

// serveExternal serves the database that d names, until ctx ends. It reports
// false when that names none: then the store is this process's own.
func serveExternal(ctx context.Context, d config.Datastore, socket string, log *slog.Logger) (bool, error) {
	switch d.Kind() {
	case config.Own:
		return false, nil
	case config.Etcd:
		return true, errors.New("cairn.datastore.endpoint is an etcd cluster, which the apiserver asks itself; no store is needed")
	}
	notify := func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}
	return true, external.Run(ctx, external.Config{
		Endpoint: d.Endpoint, CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile,
		Ready: func() error { return notify(daemon.SdNotifyReady) },
		Status: func(message string) {
			if err := notify("STATUS=" + message); err != nil {
				log.Warn("store: notify status", "error", err)
			}
		},
	}, socket, log)
}
