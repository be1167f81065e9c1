package external

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/storetest"
)

// running is a store on a database, as cairn-store runs it.
type running struct {
	socket string
	stop   func()
	ended  chan error
}

// serve runs a store on endpoint until the test ends, or stop is called, and
// returns when it is ready.
func serve(t *testing.T, endpoint string, log *slog.Logger) *running {
	t.Helper()
	if log == nil {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	return serveConfig(t, Config{Endpoint: endpoint}, log)
}

func serveConfig(t *testing.T, c Config, log *slog.Logger) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	r := &running{socket: filepath.Join(t.TempDir(), "s"), ended: make(chan error, 1)}
	c.Ready = func() error { close(ready); return nil }
	go func() { r.ended <- Run(ctx, c, r.socket, log) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("run: %v; want no error", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("run does not end within 20s")
		}
	})
	t.Cleanup(r.stop)
	select {
	case <-ready:
	case err := <-r.ended:
		t.Fatalf("run: %v; want readiness", err)
	case <-time.After(60 * time.Second):
		t.Fatal("not ready within 60s")
	}
	return r
}

func connect(t *testing.T, socket string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Reasons for exceptions, with what they mean to an apiserver.
const (
	noVersions = "kine's table does not count a key's versions; the apiserver compares revisions, and the version of compact_rev_key alone, " +
		"which kine's front keeps in the value. Events looks at the rest"
	notDense = "a write that lost to another one takes a revision, without an event; the apiserver wants revisions to rise, not to be dense. " +
		"EveryChangeOnce counts without density"
	onlyASCII = "kine's column of names is text (ASCII in MySQL); Kubernetes' names are"
)

// exceptions are tests of the suite that kine's drivers fail.
var exceptions = map[string]string{
	"Create": noVersions, "CreateAfterDelete": noVersions, "Update": noVersions, "Put": noVersions, "EmptyValue": noVersions,
	"WatchKey": noVersions, "WatchPrefix": noVersions, "WatchFromThePast": noVersions, "WatchFromNow": noVersions, "WatchBigEvents": noVersions,
	"BinaryKeysAndValues": onlyASCII,
	"ListRangeEnds": "a range without an end holds kine's own compact_rev_key, and a start that ends in a zero byte is only near; " +
		"the apiserver lists below /registry/, and no name has a sign as low as the bytes that stand for zero",
	"CompactKeepsTheRevision": "kine removes a tombstone that is the newest row, and the revision with it; the apiserver compacts to a revision " +
		"five minutes old, and its record of that is a newer row",
	"ConcurrentIncrements": notDense, "WatchersSeeEveryRevisionOnce": notDense,
}

// TestDatabases runs the tests below on each database. It takes as long as its
// servers do to start, so they share one, with an empty table for each.
func TestDatabases(t *testing.T) {
	for _, p := range products {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel() // Most of it is waiting for leases and for a stopped server.
			d := p.serve(t)
			for _, x := range []struct {
				name string
				run  func(*testing.T, *database)
			}{
				{"Conformance", conformance},
				{"Events", events},
				{"EveryChangeOnce", everyChangeOnce},
				{"ServersAgree", serversAgree},
				{"Messages", messages},
				{"TLS", verified},
				{"Outage", outage},
			} {
				t.Run(x.name, func(t *testing.T) {
					d.sql(t, "DROP TABLE IF EXISTS kine")
					x.run(t, d)
				})
			}
		})
	}
}

// conformance runs the suite, every test on an empty table.
func conformance(t *testing.T, d *database) {
	storetest.RunExcept(t, exceptions, func(t *testing.T) *clientv3.Client {
		d.sql(t, "DROP TABLE IF EXISTS kine")
		return connect(t, serve(t, d.url(), nil).socket)
	})
}
