//go:build cgo

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// server leaves in dir what a server has: the authorities with their keys.
func server(t *testing.T, role membership.Role) files {
	t.Helper()
	dir := t.TempDir()
	f := files{membership: filepath.Join(dir, "membership.json"), tls: filepath.Join(dir, "tls")}
	m := membership.Membership{Role: role, Node: "b", Servers: []string{"a:6443"}, StorePeers: []string{"a:2380"}, Settings: membership.DefaultSettings()}
	_, err := pki.EnsureAuthorities(pki.Options{Dir: f.tls})
	if err := errors.Join(err, m.Save(f.membership)); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestCertificateAtStart: a server whose store has no certificate makes one before it does anything else; a witness, whose
// certificate others sign, does not.
func TestCertificateAtStart(t *testing.T) {
	for role, want := range map[membership.Role]bool{membership.Server: true, membership.Witness: false} {
		f := server(t, role)
		// Without it the store goes no further, and listens nowhere.
		if err := os.Remove(pki.CertFile(f.tls, pki.StoreCA)); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		err := run(t.Context(), []string{"--config", "absent", "--membership", f.membership, "--tls-dir", f.tls, "--dir", dir, "--socket", filepath.Join(dir, "s")},
			terminal{err: t.Output()})
		if err == nil || !strings.Contains(err.Error(), "lacks its certificate") {
			t.Fatalf("%s: %v; want it to stop", role, err)
		}
		if _, err := os.Stat(pki.PairFile(f.tls, pki.Store)); (err == nil) != want {
			t.Errorf("%s: %v; made: want %v", role, err, want)
		}
	}
}

// TestCertificateKept: a store that waits has its certificate renewed, and made anew when it is lost.
func TestCertificateKept(t *testing.T) {
	f := server(t, membership.Server)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	own, err := f.certificate(6 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	own.ensure(log)
	first, err := os.ReadFile(pki.PairFile(f.tls, pki.Store))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); own.keep(ctx, log) }()
	defer func() { stop(); <-ended }()
	another := func(than []byte) []byte {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if now, err := os.ReadFile(pki.PairFile(f.tls, pki.Store)); err == nil && string(now) != string(than) {
				return now
			}
		}
		t.Fatal("no other certificate")
		return nil
	}
	second := another(first)
	if err := os.Remove(pki.PairFile(f.tls, pki.Store)); err != nil {
		t.Fatal(err)
	}
	another(second)
	if ok, err := pki.Serves(own.options, pki.Store); err != nil || !ok {
		t.Errorf("the certificate serves: %v, %v", ok, err)
	}
}
