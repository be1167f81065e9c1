//go:build cgo

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/cluster"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// joined leaves in dir what joining leaves for the store.
func joined(t *testing.T, ca *peertest.CA, dir string, m membership.Membership) files {
	t.Helper()
	f := files{membership: filepath.Join(dir, "membership.json"), tls: filepath.Join(dir, "tls"), own: loopback}
	m.Settings = membership.DefaultSettings()
	if err := errors.Join(m.Save(f.membership), os.MkdirAll(f.tls, 0o700)); err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(f.tls, m.Node)
	if err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string][]string{"store-ca.crt": {issued.CA}, "store.pem": {issued.Certificate, issued.Key}} {
		var text []byte
		for _, name := range from {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, data...)
		}
		if err := os.WriteFile(filepath.Join(f.tls, to), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// loopback are the addresses of a machine without a network.
func loopback() []string { return []string{"127.0.0.1", "::1"} }

func newCA(t *testing.T) *peertest.CA {
	t.Helper()
	ca, err := peertest.NewCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestConnect(t *testing.T) {
	ca := newCA(t)
	peers := []string{"10.0.0.2:2380", "[fd00::2]:2380"}
	places := append(peers, "a:2380")
	for name, tt := range map[string]struct {
		m    membership.Membership
		want cluster.Config
	}{
		"first":   {membership.Membership{Role: membership.Server, Node: "a", Founded: true}, cluster.Config{Name: "a", Zone: "z"}},
		"server":  {membership.Membership{Role: membership.Server, Node: "b", Servers: []string{"a:6443"}, StorePeers: peers}, cluster.Config{Name: "b", Zone: "z", Join: places}},
		"witness": {membership.Membership{Role: membership.Witness, Node: "c", Servers: []string{"a:6443"}, StorePeers: peers}, cluster.Config{Name: "c", Zone: "z", Join: places, Witness: true}},
	} {
		f := joined(t, ca, t.TempDir(), tt.m)
		got := cluster.Config{Name: "host"}
		if err := f.connect(&got, config.Cluster{Zone: "z"}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Network.Listen != ":2380" || got.Network.Own == nil || got.Network.Credentials.Key != filepath.Join(f.tls, "store.pem") {
			t.Errorf("%s: network %+v", name, got.Network)
		}
		if tt.m.Founded {
			tt.want.Begun = f.begun()
		}
		if diff := cmp.Diff(tt.want.Join, got.Peers()); diff != "" {
			t.Errorf("%s: peers:\n%s", name, diff)
		}
		got.Network, got.Peers = nil, nil
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// TestConnectNot: a machine of no cluster stays alone, and one of a cluster never begins a store of its own.
func TestConnectNot(t *testing.T) {
	ca := newCA(t)
	c := cluster.Config{Name: "host"}
	if err := (files{membership: filepath.Join(t.TempDir(), "none")}).connect(&c, config.Cluster{}); err != nil || c.Network != nil || c.Name != "host" {
		t.Errorf("without membership: %+v, %v; want a lone store", c, err)
	}
	server := membership.Membership{Role: membership.Server, Node: "b", Servers: []string{"a:6443"}, StorePeers: []string{"a:2380"}}
	for _, lost := range []string{"store.pem", "store-ca.crt"} {
		f := joined(t, ca, t.TempDir(), server)
		if err := os.Remove(filepath.Join(f.tls, lost)); err != nil {
			t.Fatal(err)
		}
		if err := f.connect(&c, config.Cluster{}); err == nil || !strings.Contains(err.Error(), lost) || c.Network != nil {
			t.Errorf("without %s: %v; want it named", lost, err)
		}
	}
	server.StorePeers = nil
	if err := joined(t, ca, t.TempDir(), server).connect(&c, config.Cluster{}); err == nil || c.Network != nil || !strings.Contains(err.Error(), "names no member") {
		t.Errorf("without peers: %v; want an error", err)
	}
	agent := membership.Membership{Role: membership.Agent, Node: "b", Servers: []string{"a:6443"}}
	if err := joined(t, ca, t.TempDir(), agent).connect(&c, config.Cluster{}); err == nil || !strings.Contains(err.Error(), "is an agent") {
		t.Errorf("on an agent: %v; want an error", err)
	}
}

func TestEndpoints(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")
	second := netip.MustParseAddr("192.168.0.7")
	for _, tt := range []struct {
		all  []netip.Addr
		want []string
	}{
		{nil, nil},
		{[]netip.Addr{v6}, []string{"[fd00::7]:2380"}},
		{[]netip.Addr{v4, second, v6}, []string{"10.0.0.7:2380", "192.168.0.7:2380", "[fd00::7]:2380"}},
	} {
		if diff := cmp.Diff(tt.want, endpoints(tt.all)); diff != "" {
			t.Errorf("endpoints(%v):\n%s", tt.all, diff)
		}
	}
	if got := endpoints(slices.Repeat([]netip.Addr{v4}, 20)); len(got) != maxAddresses {
		t.Errorf("%d endpoints of 20 addresses; the others take %d", len(got), maxAddresses)
	}
}

// TestTellWaiting: who waits says for what, and that it is over.
func TestTellWaiting(t *testing.T) {
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	ca, peerAddress := newCA(t), freePort(t) // where nobody is
	c := cluster.Config{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), AdminSocket: filepath.Join(dir, "a"), Logger: slog.New(slog.DiscardHandler)}
	m := membership.Membership{Role: membership.Server, Node: "b", Servers: []string{"a:6443"}, StorePeers: []string{peerAddress}}
	if err := joined(t, ca, dir, m).connect(&c, config.Cluster{}); err != nil {
		t.Fatal(err)
	}
	c.Network.Listen, c.Network.Own = "127.0.0.1:0", func() ([]string, error) { return []string{peerAddress}, nil }
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := cluster.Run(ctx, c); err != nil {
			t.Error(err)
		}
	})
	waiting, served := context.WithCancel(ctx)
	wg.Go(func() { tellWaiting(waiting, c.AdminSocket, c.Logger) })
	defer func() { stop(); wg.Wait() }()
	read := func() string {
		t.Helper()
		message := make([]byte, 1000)
		if err := notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := notify.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}
	if got := read(); !strings.HasPrefix(got, "STATUS=joining: join by "+peerAddress+": ") {
		t.Errorf("told %q; want why it does not join", got)
	}
	served()
	if got := read(); got != "STATUS=" {
		t.Errorf("told %q once it serves; want the end of the message", got)
	}
}

// TestStoreOfCluster forms a store of a server and a witness from what joining left. The server has no address at
// first, serves itself all the same, and tells its address when it has one.
func TestStoreOfCluster(t *testing.T) {
	ca, log := newCA(t), slog.New(slog.NewTextHandler(t.Output(), nil))
	address := freePort(t)
	start := func(m membership.Membership, own func() ([]string, error), listen string) *admin.Client {
		t.Helper()
		dir, err := os.MkdirTemp("", "cairn") // sockets' paths are short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		c := cluster.Config{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), AdminSocket: filepath.Join(dir, "a"), Logger: log.With("node", m.Node)}
		if err := joined(t, ca, dir, m).connect(&c, config.Cluster{Zone: "zone-" + m.Node}); err != nil {
			t.Fatal(err)
		}
		c.Network.Listen, c.Network.Own = listen, own
		ready := make(chan struct{})
		c.Ready = func() { close(ready) }
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- cluster.Run(ctx, c) }()
		t.Cleanup(func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		select {
		case <-ready:
		case <-time.After(60 * time.Second):
			t.Fatalf("%s does not serve", m.Node)
		}
		client := admin.Open(c.AdminSocket)
		t.Cleanup(func() { client.Close() })
		return client
	}
	var asked atomic.Int64 // by several goroutines
	operator := start(membership.Membership{Role: membership.Server, Node: "a", Founded: true}, func() ([]string, error) {
		if asked.Add(1) == 1 {
			return nil, errors.New("no cable")
		}
		return []string{address}, nil
	}, address)
	witnessAddress := freePort(t)
	start(membership.Membership{Role: membership.Witness, Node: "w", Servers: []string{"a:6443"}, StorePeers: []string{address}},
		func() ([]string, error) { return []string{witnessAddress}, nil }, witnessAddress)
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s, err := operator.Status(t.Context())
		var got []string
		for _, m := range s.Members {
			got = append(got, strings.Join(append([]string{m.Name, m.Role, m.Zone}, m.Addresses...), " "))
			if m.Witness != (m.Name == "w") {
				t.Errorf("%s is a witness: %v", m.Name, m.Witness)
			}
		}
		want := []string{"a voter zone-a " + address, "w standby zone-w " + witnessAddress}
		diff := cmp.Diff(want, got)
		if err == nil && diff == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v, %s", err, diff)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
