//go:build cgo

package store_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/storetest"
)

// node is a running store.
type node struct {
	socket  string
	backend *store.Backend
	stop    func() // stops it, once
}

// start runs a store on dir until the test ends.
func start(t testing.TB, dir string) *node {
	t.Helper()
	logrus.SetLevel(logrus.FatalLevel)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := member.Start(member.Options{Dir: filepath.Join(dir, "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b, err := store.Open(ctx, store.Options{Connector: connector, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{socket: filepath.Join(dir, "sock"), backend: b}
	l, err := store.Listen(ctx, n.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- store.NewServer(b).Serve(ctx, l) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for what, err := range map[string]error{"serve": <-served, "close store": b.Close(), "close member": m.Close()} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	t.Cleanup(n.stop)
	return n
}

func connect(t testing.TB, socket string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		return connect(t, start(t, t.TempDir()).socket)
	})
}

func BenchmarkUpdate(b *testing.B) {
	storetest.BenchmarkUpdate(b, func(b *testing.B) (*clientv3.Client, string) {
		dir := b.TempDir()
		return connect(b, start(b, dir).socket), dir
	})
}
