package storetest_test

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/cairn-os/cairn/pkg/store/storetest"
	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
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
	return etcdtest.Dial(t, etcdtest.Start(t, dir, func(cfg *embed.Config) { cfg.UnsafeNoFsync = !fsync }))
}
