//go:build cgo

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
)

// served runs the store in dir while f is called.
func served(t *testing.T, dir string, f func(socket string, operator *admin.Client)) {
	t.Helper()
	socket, adminSocket := filepath.Join(dir, "s"), filepath.Join(dir, "a")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		args := []string{"serve", "--dir", filepath.Join(dir, "data"), "--socket", socket, "--admin-socket", adminSocket, "--config", "absent"}
		ended <- run(ctx, args, terminal{err: t.Output()})
	}()
	c := admin.Open(adminSocket)
	defer c.Close()
	for end := time.Now().Add(20 * time.Second); ; {
		s, err := c.Status(ctx)
		if err == nil && s.Phase == "leader" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the store does not lead: %+v, %v", s, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	f(socket, c)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// command runs one of the offline commands with somebody who types answer.
func command(t *testing.T, answer string, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := run(t.Context(), args, terminal{in: strings.NewReader(answer), out: &out, err: io.Discard, person: answer != ""})
	return out.String(), err
}

// want expects all of texts in what a command printed.
func want(t *testing.T, out string, err error, texts ...string) {
	t.Helper()
	if err != nil {
		t.Errorf("error %v; want none", err)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("output lacks %q:\n%s", text, out)
		}
	}
}

// TestOfflineCommands restores and recovers a store, and refuses where it must.
func TestOfflineCommands(t *testing.T) {
	dir, err := os.MkdirTemp("", "cairn") // Sockets' paths are short.
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	var file string
	served(t, dir, func(socket string, operator *admin.Client) {
		use(t, socket, 0)
		taken, err := operator.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		file = filepath.Join(data, "snapshots", taken.Name)
		for _, args := range [][]string{{"restore", "--dir", data, "--from", file, "--yes"}, {"recover", "--dir", data, "--dry-run"}} {
			if _, err := command(t, "", args...); err == nil || !strings.Contains(err.Error(), "stop cairn-store first") {
				t.Errorf("%s while the store runs: %v; want that it must be stopped", args[0], err)
			}
		}
	})

	out, err := command(t, "", "verify", file)
	want(t, out, err, "Revision  2\n", "Keys      2\n", "whole")
	if _, err := command(t, "", "restore", "--dir", data, "--from", file); !errors.Is(err, errNotConfirmed) {
		t.Errorf("restore without --yes and nobody to ask: %v; want %v", err, errNotConfirmed)
	}
	if _, err := command(t, "no\n", "restore", "--dir", data, "--from", file); !errors.Is(err, errNotConfirmed) {
		t.Errorf("restore that nobody confirms: %v; want %v", err, errNotConfirmed)
	}
	if _, err := os.Stat(filepath.Join(data, "damaged")); err == nil {
		t.Error("something was set aside although nothing was restored")
	}
	out, err = command(t, "restore\n", "restore", "--dir", data, "--from", file)
	want(t, out, err, "Restored 2 keys; the store begins with revision 1000000002", "loses every change after revision 2", "former data are in "+data+"/damaged/")
	served(t, dir, func(socket string, _ *admin.Client) { use(t, socket, 1) })

	out, err = command(t, "", "recover", "--dir", data, "--dry-run")
	want(t, out, err, "Others    none known", "Nothing was changed.")
	out, err = command(t, "", "recover", "--dir", data, "--yes")
	want(t, out, err, "Restored 2 keys; the store begins with revision 20000")
	served(t, dir, func(socket string, _ *admin.Client) { use(t, socket, 1) })
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"explode"}, {"verify"}, {"verify", "a", "b"}, {"verify", "absent"}, {"restore"}, {"restore", "--from", "absent", "--dir", t.TempDir()},
		{"restore", "file"}, {"recover", "--dir", t.TempDir(), "--dry-run"}, {"serve", "--snapshot-keep", "0"},
	} {
		if _, err := command(t, "", args...); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// TestForeignDatastore: what the node does not use is not worked on.
func TestForeignDatastore(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(conf, []byte("cairn: {datastore: {endpoint: 'postgres://db.example.com/shop'}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"restore", "--from", "f"}, {"recover"}} {
		_, err := command(t, "", append(args, "--dir", dir, "--config", conf)...)
		if err == nil || !strings.Contains(err.Error(), "in a datastore elsewhere") {
			t.Errorf("%s: %v; want that the state is elsewhere", args[0], err)
		}
	}
}
