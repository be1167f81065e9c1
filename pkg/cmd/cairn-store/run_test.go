//go:build cgo

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestRun follows the process from its start over the readiness message to an
// orderly end, twice on the same data.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	socket := filepath.Join(dir, "store.sock")
	for _, want := range []int64{0, 1} {
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, []string{"--config", "absent", "--dir", filepath.Join(dir, "data"), "--socket", socket}, terminal{err: t.Output()})
		}()
		message := make([]byte, 100)
		if err := notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := notify.Read(message)
		if err != nil || string(message[:n]) != "READY=1" {
			t.Fatalf("notification %q, %v; want READY=1", message[:n], err)
		}
		info, err := os.Stat(socket)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v; want mode 0600", info, err)
		}
		use(t, socket, want)
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v; want no error", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("run does not end within 10s")
		}
	}
}

// use expects want keys and writes one.
func use(t *testing.T, socket string, want int64) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Get(t.Context(), "/t/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || resp.Count != want {
		t.Errorf("count = %v, %v; want %d", resp, err, want)
	}
	if _, err := c.Put(t.Context(), "/t/a", "1"); err != nil {
		t.Error(err)
	}
	status, err := c.Status(t.Context(), "unix://"+socket)
	if err != nil || status.DbSize <= 0 {
		t.Errorf("status = %+v, %v; want a size", status, err)
	}
}

// TestForeignDirectory refuses a directory whose data nobody can name.
func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "member", "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := run(t.Context(), []string{"--dir", dir, "--socket", filepath.Join(dir, "s")}, terminal{err: t.Output()})
	if err == nil || !strings.Contains(err.Error(), "identity") {
		t.Errorf("run on a foreign directory: %v; want an error about its identity", err)
	}
}
