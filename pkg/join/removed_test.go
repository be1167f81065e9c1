package join

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// counted serves the cluster and counts what it is asked.
func (c *cluster) counted() (url string, asked *atomic.Int64) {
	asked = new(atomic.Int64)
	s := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		c.server.Handler().ServeHTTP(w, r)
	}), c.dir+"/server/tls")
	return s.URL, asked
}

// TestRemovedMachines removes an agent and a witness while they run or are off. They join again at their next start when
// their token is good, and ask nobody at the starts after it.
func TestRemovedMachines(t *testing.T) {
	for _, tt := range []struct {
		name  string
		role  membership.Role
		learn func(*cluster, *testing.T, Options, *membership.Membership) // how the machine learns that it was removed
	}{
		{"running agent", membership.Agent, (*cluster).learnRunning},
		{"running witness", membership.Witness, (*cluster).learnRunning},
		{"agent off for years", membership.Agent, (*cluster).learnOff},
		{"witness off for years", membership.Witness, (*cluster).learnOff},
		{"agent that lost a file", membership.Agent, func(_ *cluster, t *testing.T, o Options, _ *membership.Membership) {
			if err := os.Remove(pki.PairFile(o.path(nodeTLS), pki.KubeletServer)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			o, status := c.machine(tt.role, "shop", c.token(token.Server))
			m := mustRun(t, o)
			identity := identityOf(t, o)
			if err := Forget(t.Context(), c.client, "shop"); err != nil {
				t.Fatal(err)
			}
			tt.learn(c, t, o, m)
			url, asked := c.counted()
			o.ServerURL = url
			for _, change := range []func(*Options){func(o *Options) { o.Token = "" }, func(o *Options) { o.ServerURL = c.http.URL; o.Token = "" }} {
				without := o
				change(&without)
				err := run(t, without)
				var r *Refusal
				if !errors.As(err, &r) || r.Code != CodeRemoved || !strings.Contains(*status, "was removed from its cluster") || !strings.Contains(*status, "cairn.token") {
					t.Errorf("Run without a token = %v, status %q", err, *status)
				}
			}
			bad := o
			bad.Token = otherPin(t, o.Token)
			if err := run(t, bad); !IsRefusal(err) || !strings.Contains(*status, "was removed") || !strings.Contains(*status, "another cluster") {
				t.Errorf("Run with a wrong token = %v, status %q", err, *status)
			}
			if got, err := getRecord(t.Context(), c.client, "shop"); err != nil || got != nil {
				t.Fatalf("record %v, %v; want none", got, err)
			}
			mustRun(t, o)
			if c.identityOf("shop") != identity {
				t.Error("it came back as another machine")
			}
			before := asked.Load()
			for range 3 {
				mustRun(t, o)
			}
			if n := asked.Load() - before; n != 0 {
				t.Errorf("%d questions at three starts of a machine that lacks nothing", n)
			}
		})
	}
}

func (c *cluster) learnRunning(t *testing.T, o Options, m *membership.Membership) {
	if err := run(t, o); err != nil { // nobody told it yet: no server is asked, and no harm done
		t.Fatal(err)
	}
	wantCode(t, o.renewOptions(m), CodeRemoved)
}

func (c *cluster) learnOff(t *testing.T, _ Options, _ *membership.Membership) {
	c.advance(3 * 365 * 24 * time.Hour)
	c.renewServer(t)
}

// TestRemovedAndRestored takes a machine back by restoring the cluster's data: it needs no token.
func TestRemovedAndRestored(t *testing.T) {
	c := newCluster(t)
	for _, role := range []membership.Role{membership.Agent, membership.Witness} {
		o, _ := c.machine(role, "shop-"+string(role), c.token(token.Server))
		m := mustRun(t, o)
		s := c.secretOf(o.Node)
		if err := Forget(t.Context(), c.client, o.Node); err != nil {
			t.Fatal(err)
		}
		wantCode(t, o.renewOptions(m), CodeRemoved)
		s.ResourceVersion = ""
		c.add(s)
		o.Token = ""
		mustRun(t, o)
		if lackingAny(t, o) {
			t.Errorf("files %v", files(t, o.Dir))
		}
		if _, err := os.Stat(o.removedFile()); err == nil {
			t.Error("the mark is still there")
		}
	}
}

// TestRemovedAgentGetsNewKeys joins again with a certificate that is valid, and whose key the cluster forgot.
func TestRemovedAgentGetsNewKeys(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	m := mustRun(t, o)
	path := pki.PairFile(o.path(nodeTLS), pki.KubeletClient)
	old, err := loadLeaf(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), c.client, "shop"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, o.renewOptions(m), CodeRemoved)
	obtain := o.ObtainNode
	had := true
	o.ObtainNode = nil
	if err := run(t, o); err == nil {
		t.Error("Run without ObtainNode succeeded")
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		had = false
	}
	o.ObtainNode = obtain // a cut in between leaves no certificate, and the next start gets them
	mustRun(t, o)
	if leaf, err := loadLeaf(path); err != nil || leaf.Equal(old) || had {
		t.Errorf("the old certificate was kept, error %v", err)
	}
}

// TestWitnessCertificate says in the certificate that a witness is one, when it joins and when it renews.
func TestWitnessCertificate(t *testing.T) {
	c := newCluster(t)
	for role, want := range map[membership.Role][]string{membership.Witness: {"cairn:witness"}, membership.Server: nil} {
		o, _ := c.machine(role, "m-"+string(role), c.token(token.Server))
		m := mustRun(t, o)
		path := pki.PairFile(o.path(serverTLS), pki.Store)
		leaf, err := loadLeaf(path)
		if err != nil || !slices.Equal(leaf.Subject.Organization, want) {
			t.Errorf("%s: certificate of %v, %v; want %v", role, leaf.Subject, err, want)
		}
		if role != membership.Witness {
			continue
		}
		c.advance(300 * 24 * time.Hour)
		if renewed, err := RenewStore(t.Context(), o.renewOptions(m)); err != nil || !renewed {
			t.Errorf("RenewStore = %v, %v", renewed, err)
		}
		if leaf, err = loadLeaf(path); err != nil || !slices.Equal(leaf.Subject.Organization, want) {
			t.Errorf("renewed certificate of %v, %v; want %v", leaf.Subject, err, want)
		}
		// One from before witnesses were told apart is replaced.
		if err := os.WriteFile(path, c.plainStore(t, o.Node), 0o600); err != nil {
			t.Fatal(err)
		}
		if renewed, err := RenewStore(t.Context(), o.renewOptions(m)); err != nil || !renewed {
			t.Errorf("RenewStore of a server's kind of certificate = %v, %v", renewed, err)
		}
		c.advance(-300 * 24 * time.Hour)
	}
}

func (c *cluster) plainStore(t *testing.T, node string) []byte {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	r := pki.StoreRequest(node)
	r.Now = c.clock
	certificate, err := pki.Sign(c.dir+"/server/tls", pki.StoreCA, key.Public(), r)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.EncodePair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
