package storetest_test

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/storetest"
)

// TestEtcd proves the suite: what a real etcd does not do, it must not ask.
func TestEtcd(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		dir := t.TempDir()
		cfg := embed.NewConfig()
		cfg.Dir = filepath.Join(dir, "etcd")
		cfg.LogLevel = "error"
		cfg.UnsafeNoFsync = true
		client := url.URL{Scheme: "unix", Path: filepath.Join(dir, "client")}
		peer := url.URL{Scheme: "unix", Path: filepath.Join(dir, "peer")}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
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
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{client.String()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	})
}
