//go:build cgo

package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// stranger speaks to a cluster's members with a certificate of its own, as one that was stolen would be used.
func (c *testCluster) stranger(id uint64, name string, options ...peertest.Option) *peer.Network {
	c.t.Helper()
	credentials, err := c.ca.Issue(filepath.Join(c.dir, "stranger"), name, options...)
	if err != nil {
		c.t.Fatal(err)
	}
	n, err := peer.Listen(c.t.Context(), peer.Config{ID: id, Listen: "127.0.0.1:0", Credentials: credentials, Logger: c.log})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { n.Close() })
	return n
}

// ask sends a request to a node's port for members, and returns the code of the answer.
func ask(t *testing.T, from *peer.Network, to *testNode, method, path string, in any) (int, error) {
	t.Helper()
	client := admin.NewClient(func(ctx context.Context) (net.Conn, error) {
		conn, _, err := from.DialAddress(ctx, to.config.Network.Listen, protocolMember)
		return conn, err
	})
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	err := client.Do(ctx, method, path, in, nil)
	var refused *admin.Error
	switch {
	case errors.As(err, &refused):
		return refused.Code, err
	case err != nil:
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return http.StatusOK, nil
}

func (c *testCluster) id(n *testNode) admin.ID {
	c.t.Helper()
	s, err := c.status(n)
	if err != nil {
		c.t.Fatal(err)
	}
	return s.ID
}

// etcd says whether a node serves the store's clients to who dials.
func etcd(t *testing.T, from *peer.Network, to *testNode) error {
	t.Helper()
	conn, _, err := from.DialAddress(t.Context(), to.config.Network.Listen, protocolEtcd)
	if err != nil {
		return err
	}
	defer conn.Close()
	// A server of HTTP/2 answers the client's preface with its settings.
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// TestWitnessIsNoServer has a cluster with a witness, and everything asked with the witness's certificate that it might be
// abused for, of the leader and of a follower that would pass it on.
func TestWitnessIsNoServer(t *testing.T) {
	c := newTestCluster(t)
	c.add()
	c.add()
	witness := c.add(c.asWitness)
	c.roles(c.nodes[0], "n1 voter", "n2 voter", "n3 voter")
	leader := c.leader()
	if leader == witness {
		t.Fatal("the witness leads")
	}
	follower := c.nodes[1]
	if leader == follower {
		follower = c.nodes[0]
	}
	id := c.id(witness)
	stolen := c.stranger(uint64(id), "n3", peertest.Witness())
	for _, to := range []*testNode{leader, follower} {
		if err := etcd(t, stolen, to); !errors.Is(err, peer.ErrRefused) {
			t.Errorf("%s: the store's clients' protocol: %v; want %v", to.name, err, peer.ErrRefused)
		}
		join := admin.Join{ID: id, Name: "n3", Addresses: []string{witness.config.Network.Listen}, Witness: true}
		change := func(f func(*admin.Join)) admin.Join {
			other := join
			f(&other)
			return other
		}
		for _, tt := range []struct {
			method, path string
			in           any
			want         int
		}{
			{http.MethodDelete, "/v1/members/" + c.id(follower).String(), nil, http.StatusForbidden},
			{http.MethodPost, "/v1/leader", admin.Lead{To: id}, http.StatusForbidden},
			{http.MethodPost, "/v1/snapshot", nil, http.StatusForbidden},
			{http.MethodGet, "/v1/snapshots", nil, http.StatusForbidden},
			{http.MethodGet, "/v1/snapshots/x", nil, http.StatusForbidden},
			{http.MethodPost, "/v1/join", change(func(j *admin.Join) { j.Witness = false }), http.StatusForbidden},
			{http.MethodPost, "/v1/join", change(func(j *admin.Join) { j.Name = "n1" }), http.StatusForbidden},
			{http.MethodPost, "/v1/join", change(func(j *admin.Join) { j.ID++ }), http.StatusForbidden},
			{http.MethodPost, "/v1/join", join, http.StatusOK},
			{http.MethodGet, "/v1/status", nil, http.StatusOK},
			{http.MethodPost, "/v1/book", []peer.Entry{}, http.StatusOK},
		} {
			if code, err := ask(t, stolen, to, tt.method, tt.path, tt.in); code != tt.want {
				t.Errorf("%s: %s %s %+v: %d, %v; want %d", to.name, tt.method, tt.path, tt.in, code, err, tt.want)
			}
		}
	}
	// As one that was passed on by a member: only servers pass on.
	forged := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, _, err := stolen.DialAddress(ctx, leader.config.Network.Listen, protocolMember)
		return conn, err
	}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://store/v1/join", strings.NewReader(`{"id":"`+id.String()+`","name":"n1"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(forwarded, "1")
	resp, err := forged.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a forged forwarded request: %s; want %d", resp.Status, http.StatusForbidden)
	}
	put(t, c.client(t, follower), "/t/after")
	c.roles(leader, "n1 voter", "n2 voter", "n3 voter")

	// It does not take an absent server's place.
	away := c.id(follower)
	c.halt(follower)
	new := c.stranger(77, "n9", peertest.Witness())
	if code, err := ask(t, new, leader, http.MethodPost, "/v1/join", admin.Join{ID: 77, Name: "n9", Addresses: []string{new.Addr().String()}, Witness: true, Replaces: away}); code != http.StatusOK {
		t.Fatalf("another witness joins: %d, %v", code, err)
	}
	s, err := c.status(leader)
	if err != nil {
		t.Fatal(err)
	}
	there := false
	for _, m := range s.Members {
		there = there || m.ID == away
	}
	if !there {
		t.Errorf("members: %+v; want %s among them", s.Members, follower.name)
	}
}

// asWitness gives a node a witness's certificate.
func (c *testCluster) asWitness(o *Config) {
	c.t.Helper()
	issued, err := c.ca.Issue(filepath.Dir(o.Dir), o.Name, peertest.Witness())
	if err != nil {
		c.t.Fatal(err)
	}
	o.Witness, o.Network.Credentials = true, issued
}

// TestWitnessLeads: where nobody else can lead, a witness does, and servers' clients are brought to it.
func TestWitnessLeads(t *testing.T) {
	c := newTestCluster(t)
	witness := c.add(c.asWitness)
	server := c.add()
	c.roles(witness, "n1 voter", "n2 standby")
	put(t, c.client(t, server), "/t/a")
	// The witness's operator may look, and change nothing on another's word.
	third := c.add()
	c.roles(server, "n1 voter", "n2 voter", "n3 voter")
	for deadline := time.Now().Add(formLimit); c.leader() == witness; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the witness leads still")
		}
	}
	client := admin.Open(witness.config.AdminSocket)
	defer client.Close()
	err := client.Remove(t.Context(), c.id(third))
	if refused := (*admin.Error)(nil); !errors.As(err, &refused) || refused.Code != http.StatusForbidden {
		t.Errorf("the witness's operator removes a server: %v; want %d", err, http.StatusForbidden)
	}
}

// TestTold: a witness that says that it leads is not believed while a server knows a leader.
func TestTold(t *testing.T) {
	const a, b, w = 1, 2, 9
	for _, tt := range []struct {
		name  string
		views map[uint64]view
		want  uint64
	}{
		{"nobody", map[uint64]view{a: {term: 3}, w: {term: 4}}, 0},
		{"the newest", map[uint64]view{a: {term: 3, leader: a}, b: {term: 4, leader: b}}, b},
		{"a witness against a server", map[uint64]view{a: {term: 3, leader: a}, w: {term: 1 << 40, leader: w}}, a},
		{"a witness that a server says leads", map[uint64]view{a: {term: 4, leader: w}, b: {term: 3, leader: b}, w: {term: 4, leader: w}}, w},
		{"a witness alone", map[uint64]view{a: {term: 4}, w: {term: 4, leader: w}}, w},
		{"a witness of another", map[uint64]view{w: {term: 4, leader: a}}, a},
	} {
		if got := told(tt.views, func(id uint64) bool { return id == w }); got != tt.want {
			t.Errorf("%s: %d; want %d", tt.name, got, tt.want)
		}
	}
}

// TestRemovedIsNotServed: a member's clients are cut off when it is removed, and are not served again.
func TestRemovedIsNotServed(t *testing.T) {
	c := three(t)
	leader := c.leader()
	gone := c.nodes[0]
	if gone == leader {
		gone = c.nodes[1]
	}
	id := c.id(gone)
	c.halt(gone)
	stolen := c.stranger(uint64(id), gone.name)
	if err := etcd(t, stolen, leader); err != nil {
		t.Fatalf("a member's client: %v", err)
	}
	open, _, err := stolen.DialAddress(t.Context(), leader.config.Network.Listen, protocolEtcd)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	client := admin.Open(leader.config.AdminSocket)
	defer client.Close()
	for deadline := time.Now().Add(formLimit); ; time.Sleep(100 * time.Millisecond) {
		if err = client.Remove(t.Context(), id); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	_ = open.SetDeadline(time.Now().Add(10 * time.Second))
	var timeout net.Error
	for err = nil; err == nil; {
		_, err = open.Read(make([]byte, 1<<10))
	}
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection of who was removed is open still")
	}
	if err := etcd(t, stolen, leader); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("a client of who was removed: %v; want that the connection ends", err)
	}
	if code, err := ask(t, stolen, leader, http.MethodGet, "/v1/snapshots", nil); code != http.StatusForbidden {
		t.Errorf("snapshots for who was removed: %d, %v; want %d", code, err, http.StatusForbidden)
	}
	if conn, _, err := stolen.DialAddress(t.Context(), leader.config.Network.Listen, protocolRaft); err == nil {
		defer conn.Close()
		// Who is served and says nothing is cut off after ten seconds.
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("raft of who was removed is served")
		}
	}
	// Another member is, right after it joined.
	joined := c.add()
	put(t, c.client(t, joined), "/t/new")
}
