package control

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text); d != "" {
		t.Errorf("%s (-update writes it): %s", path, d)
	}
}

func testOptions() Options {
	o := DefaultOptions("shop-1")
	o.addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	return o
}

func TestArguments(t *testing.T) {
	o := testOptions()
	golden(t, "apiserver", o.apiserverArguments())
	golden(t, "controller-manager", o.controllerManagerArguments())
	golden(t, "scheduler", o.schedulerArguments())
}

// TestComponentsTakeArguments lets upstream's own parsers judge. It runs once in a process: the options are global.
func TestComponentsTakeArguments(t *testing.T) {
	s, err := newComponents(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if s.apiserver.SecureServing.BindPort != 6443 || s.manager.SecureServing.BindPort != 0 || s.scheduler.SecureServing.BindPort != 0 {
		t.Error("ports: want the apiserver's alone")
	}
	if s.manager.Generic.LeaderElection.LeaderElect || s.scheduler.LeaderElection.LeaderElect {
		t.Error("leader election is on; a lost lease would end the process")
	}
	if s.apiserver.Features.EnableProfiling {
		t.Error("profiling is on")
	}
}

func TestAwait(t *testing.T) {
	boom := errors.New("boom")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	one := func(v ended) chan ended { c := make(chan ended, 1); c <- v; return c }
	for _, tt := range []struct {
		name string
		ctx  context.Context
		ends chan ended
		want string
	}{
		{"failure", t.Context(), one(ended{"kube-scheduler", boom}), "kube-scheduler ended: boom"},
		{"silent end", t.Context(), one(ended{"kube-apiserver", nil}), "kube-apiserver ended: returned without being asked to"},
		{"end while stopping", stopped, one(ended{"kube-scheduler", boom}), ""},
		{"asked to stop", stopped, nil, ""},
	} {
		got := ""
		if err := await(tt.ctx, nil, tt.ends); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: await = %q; want %q", tt.name, got, tt.want)
		}
	}
}

// TestStopOutlivesContext checks that a component goes on after the process was asked to stop, until its own turn.
func TestStopOutlivesContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ends := make(chan ended, 1)
	r := start(ctx, component{"x", func(ctx context.Context) error { <-ctx.Done(); return nil }}, ends)
	cancel()
	select {
	case e := <-ends:
		t.Fatalf("component ended with the context: %+v", e)
	case <-time.After(20 * time.Millisecond):
	}
	stop(slog.New(slog.DiscardHandler), time.Second, r)
	if e := <-ends; e.err != nil {
		t.Error(e.err)
	}
}
