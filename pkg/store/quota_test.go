//go:build cgo

package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/member"
)

// openQuota opens a Backend with a bound on its size.
func openQuota(t *testing.T, quota int64) *store.Backend {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	m, err := member.Start(member.Options{Dir: filepath.Join(t.TempDir(), "data"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	connector, err := m.Connector()
	if err != nil {
		t.Fatal(err)
	}
	b, err := store.Open(t.Context(), store.Options{Connector: connector, Logger: log, Quota: quota})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// await polls for a pressure.
func await(t *testing.T, b *store.Backend, want store.Pressure) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for b.Pressure() != want {
		if time.Now().After(deadline) {
			t.Fatalf("pressure %s; want %s", b.Pressure(), want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestDiskPressure follows a disk that fills up and is cleared again.
func TestDiskPressure(t *testing.T) {
	b := openQuota(t, 0)
	ctx := t.Context()
	for _, key := range []string{"/registry/events/a/1", "/registry/leases/n/a", "/registry/pods/a/1"} {
		if _, err := b.Create(ctx, key, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	lease, err := revisionOf(b, t, "/registry/leases/n/a")
	if err != nil {
		t.Fatal(err)
	}

	b.SetPressure(store.Shed)
	if _, err := b.Create(ctx, "/registry/events/a/2", []byte("1"), 0); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("create an event while space is short: %v; want no space", err)
	}
	if _, err := b.Create(ctx, "/registry/pods/a/2", []byte("1"), 0); err != nil {
		t.Errorf("create a pod while space is short: %v; want success", err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, n, err := b.Count(ctx, "/registry/events/", "/registry/events0", 0)
		if err == nil && n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events, %v while space is short; want them deleted", n, err)
		}
		time.Sleep(20 * time.Millisecond)
	}

	b.SetPressure(store.Full)
	if _, err := b.Create(ctx, "/registry/pods/a/3", []byte("1"), 0); !errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("create on a full disk: %v; want no space", err)
	}
	if _, _, ok, err := b.Update(ctx, "/registry/leases/n/a", []byte("2"), lease, 0); err != nil || !ok {
		t.Errorf("renew a lease on a full disk: %t, %v; want success", ok, err)
	}
	for _, key := range []string{"/registry/leases/n/b", "/registry/masterleases/a"} {
		if _, err := b.Create(ctx, key, []byte("1"), 0); err != nil {
			t.Errorf("create %s on a full disk: %v; want success", key, err)
		}
	}
	if _, _, ok, err := b.Delete(ctx, "/registry/pods/a/2", 0); err != nil || !ok {
		t.Errorf("delete on a full disk: %t, %v; want success", ok, err)
	}

	b.SetPressure(store.Relaxed)
	if _, err := b.Create(ctx, "/registry/events/a/3", []byte("1"), 0); err != nil {
		t.Errorf("create once there is space: %v; want success", err)
	}
}

func revisionOf(b *store.Backend, t *testing.T, key string) (int64, error) {
	_, kv, err := b.Get(t.Context(), key, 0, true)
	if err != nil {
		return 0, err
	}
	return kv.ModRevision, nil
}

// TestQuota fills the database: events go first, then writes are refused, and
// deleting makes room again.
func TestQuota(t *testing.T) {
	const quota = 4 << 20
	b := openQuota(t, quota)
	ctx := t.Context()
	// Not compressible, as secrets are.
	noise := make([]byte, 8<<10)
	fill := func(prefix string, i int) error {
		for j := range noise {
			noise[j] = byte((j*j + i*7919 + j*i) >> 3)
		}
		_, err := b.Create(ctx, fmt.Sprintf("%s%04d", prefix, i), []byte("k8s:enc:"+string(noise)), 0)
		return err
	}
	for i := range 100 {
		if err := fill("/registry/events/a/", i); err != nil {
			t.Fatal(err)
		}
	}
	written, refused := 0, error(nil)
	for i := 0; i < 2000 && refused == nil; i++ {
		if refused = fill("/registry/configmaps/a/", i); refused == nil {
			written++
		}
		if i%50 == 0 {
			b.SetPressure(store.Shed) // Measured at once instead of every 10 s.
			b.SetPressure(store.Relaxed)
		}
	}
	if !errors.Is(refused, rpctypes.ErrGRPCNoSpace) || written < 200 {
		t.Fatalf("%d objects of 8 KiB written, then %v; want a refusal after at least 200", written, refused)
	}
	if _, n, err := b.Count(ctx, "/registry/events/", "/registry/events0", 0); err != nil || n != 0 {
		t.Errorf("%d events, %v in a full database; want none", n, err)
	}
	if size, err := b.DbSize(ctx); err != nil || size > quota*5/4 {
		t.Errorf("database of %d bytes, %v; the quota is %d", size, err, quota)
	}
	for i := range written {
		if _, _, _, err := b.Delete(ctx, fmt.Sprintf("/registry/configmaps/a/%04d", i), 0); err != nil {
			t.Fatalf("delete in a full database: %v", err)
		}
	}
	rev, err := b.CurrentRevision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Compact(ctx, rev); err != nil && !strings.Contains(err.Error(), "compacted") {
		t.Fatal(err)
	}
	await(t, b, store.Relaxed)
	if err := fill("/registry/configmaps/b/", 0); err != nil {
		t.Errorf("create after deleting: %v; want success", err)
	}
}
