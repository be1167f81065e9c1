package storetest_test

import (
	"net/url"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/storetest"
)

// TestEtcd proves the suite: what a real etcd does not do, it must not ask.
func TestEtcd(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client { return start(t, t.TempDir(), false) })
}

// BenchmarkEtcd is the peer of the store's own.
func BenchmarkEtcd(b *testing.B) {
	storetest.BenchmarkUpdate(b, func(b *testing.B) (*clientv3.Client, string) {
		dir := b.TempDir()
		return start(b, dir, true), dir
	})
}

func start(t testing.TB, dir string, fsync bool) *clientv3.Client {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.LogLevel = "fatal"
	cfg.UnsafeNoFsync = !fsync
	any := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{any}, []url.URL{any}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{any}, []url.URL{any}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready after 30s")
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Clients[0].Addr().String()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
