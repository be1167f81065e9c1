package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/keyutil"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// first returns the options of a first server.
func first(t *testing.T) Options {
	return Options{
		Role: membership.Server, Node: "first", Dir: t.TempDir(), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Version: kubernetesVersion,
		pause: func(context.Context, time.Duration) error { return errStop },
	}
}

func TestFoundedServer(t *testing.T) {
	o := first(t)
	o.Settings = &membership.Settings{Flannel: "wireguard", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
	m := mustRun(t, o)
	if !m.Founded || m.Settings.Flannel != "wireguard" || m.Settings.PodCIDRs[0].String() != "10.42.0.0/16" {
		t.Errorf("membership %+v", m)
	}
	leaf, err := loadLeaf(pki.PairFile(o.path(serverTLS), pki.APIServer))
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.VerifyHostname("10.96.0.1"); err != nil {
		t.Error(err)
	}
	// It stays in its cluster whatever the configuration says, and follows its own name and addresses.
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	o.ServerURL, o.Token, o.Node = "https://192.0.2.99:6443", "x", "renamed"
	o.Settings = &membership.Settings{Flannel: "vxlan"}
	o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.200")}
	m = mustRun(t, o)
	if !m.Founded || m.Node != "renamed" || m.Settings.Flannel != "wireguard" {
		t.Errorf("membership %+v", m)
	}
	for _, want := range []string{"another server", "cairn.cluster.flannel", "new name"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %s; want %q", log.String(), want)
		}
	}
	if leaf, err = loadLeaf(pki.PairFile(o.path(serverTLS), pki.APIServer)); err != nil || leaf.VerifyHostname("192.0.2.200") != nil {
		t.Errorf("certificate for %v, %v", leaf.IPAddresses, err)
	}
	// Without an address the leaves stay.
	before, err := os.ReadFile(pki.PairFile(o.path(serverTLS), pki.APIServer))
	if err != nil {
		t.Fatal(err)
	}
	o.Addresses = nil
	mustRun(t, o)
	if after, err := os.ReadFile(pki.PairFile(o.path(serverTLS), pki.APIServer)); err != nil || !bytes.Equal(before, after) {
		t.Error("the apiserver's certificate changed though the machine has no address")
	}
}

func TestBadSettings(t *testing.T) {
	o := first(t)
	o.Settings = &membership.Settings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/20")}}
	wantRefusal(t, o, run(t, o), CodeConfig, "overlap")
	if got := files(t, o.Dir); len(got) > 0 {
		t.Errorf("files %v; want none", got)
	}
}

// TestEarlierRelease adopts a server that has certificates and neither identity nor membership, with the power cut at
// each write, and never gives it authorities of another cluster.
func TestEarlierRelease(t *testing.T) {
	c := newCluster(t)
	for _, join := range []bool{false, true} {
		for n := range 8 {
			o, _ := c.machine(membership.Server, "old", c.token(token.Server))
			if !join {
				o.ServerURL, o.Token = "", ""
			}
			if _, err := pki.Ensure(pki.Options{Dir: o.path(serverTLS), Node: o.Node, Now: c.clock}); err != nil {
				t.Fatal(err)
			}
			if err := pki.EnsureEncryption(o.path(serverDir, encryptionName), c.clock()); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{pki.KubeletCA, pki.StoreCA} { // which it did not know
				for _, path := range []string{pki.PairFile(o.path(serverTLS), name), pki.CertFile(o.path(serverTLS), name)} {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			want, err := os.ReadFile(pki.PairFile(o.path(serverTLS), pki.ServerCA))
			if err != nil {
				t.Fatal(err)
			}
			o.write = cutAt(n, false)
			if err := run(t, o); err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			o.write = nil
			if m := mustRun(t, o); !m.Founded {
				t.Fatalf("cut %d, server_url %v: membership %+v; want it founded", n, join, m)
			}
			have, err := os.ReadFile(pki.PairFile(o.path(serverTLS), pki.ServerCA))
			if err != nil || !bytes.Equal(want, have) {
				t.Fatalf("cut %d: the CA changed: %v", n, err)
			}
			identityOf(t, o)
			if o.lacking(membership.Server) != "" {
				t.Errorf("cut %d: %s lacks", n, o.lacking(membership.Server))
			}
		}
	}
}

// TestFounderLostFiles refuses to make anew what the whole cluster rests on.
func TestFounderLostFiles(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Server, "first", "")
	o.ServerURL = ""
	mustRun(t, o)
	tls := o.path(serverTLS)
	for _, path := range []string{
		pki.PairFile(tls, pki.ServerCA), pki.PairFile(tls, pki.ClientCA), pki.PairFile(tls, pki.RequestHeaderCA),
		pki.ServiceAccountKey(tls), o.path(serverDir, encryptionName),
	} {
		away := path + ".away"
		if err := os.Rename(path, away); err != nil {
			t.Fatal(err)
		}
		if err := run(t, o); !IsRefusal(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("Run without %s = %v; want a refusal that names it", path, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was made anew", path)
		}
		if err := os.Rename(away, path); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, o)
}

// TestMemberLostIdentity has a server that joined and then lost what is below node join again: it is no founder.
func TestMemberLostIdentity(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Server, "s", c.token(token.Server))
	mustRun(t, o)
	if err := os.RemoveAll(o.path("node")); err != nil {
		t.Fatal(err)
	}
	c.heartbeat("s")
	c.ready("s", corev1.ConditionUnknown) // lost, as the cluster sees it
	if m := mustRun(t, o); m.Founded {
		t.Errorf("membership %+v; want it joined", m)
	}
}

// TestNoAddress gives a member without a network the store's certificate all the same.
func TestNoAddress(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Server, "first", "")
	o.ServerURL = ""
	mustRun(t, o)
	pair := pki.PairFile(o.path(serverTLS), pki.Store)
	if err := os.Remove(pair); err != nil {
		t.Fatal(err)
	}
	o.Addresses = nil
	mustRun(t, o)
	if _, err := os.Stat(pair); err != nil {
		t.Errorf("the store's certificate without an address: %v", err)
	}
}

func TestDamage(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Server, "s", c.token(token.Server))
	mustRun(t, o)
	ca := pki.PairFile(o.path(serverTLS), pki.ServerCA)
	want, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	without := o
	without.Token = ""
	if err := run(t, without); !IsRefusal(err) || !strings.Contains(err.Error(), ca) {
		t.Errorf("Run without the CA and without a token = %v", err)
	}
	mustRun(t, o) // with a token it gets the CA again
	if have, err := os.ReadFile(ca); err != nil || !bytes.Equal(have, want) {
		t.Errorf("the CA is not the cluster's: %v", err)
	}
	if err := os.WriteFile(o.membershipFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t, o); !IsRefusal(err) || !strings.Contains(err.Error(), "cairnctl reset") {
		t.Errorf("Run with a damaged membership = %v", err)
	}
}

// TestDamagedIdentity lets a server, and a machine that belongs to no cluster, make another identity; an agent and a witness
// join again by a token, for they need a certificate. The damaged file is kept.
func TestDamagedIdentity(t *testing.T) {
	c := newCluster(t)
	machines := byte(0)
	for _, tt := range []struct {
		name  string
		role  membership.Role
		begun bool // it began its cluster
		state string
		again bool // it has to join again
	}{
		{"founder", membership.Server, true, "member", false},
		{"server", membership.Server, false, "member", false},
		{"agent", membership.Agent, false, "member", true},
		{"witness", membership.Witness, false, "member", true},
		{"newcomer", membership.Agent, false, "", false},
		{"founder-cut", membership.Server, true, "", false},
		{"server-cut", membership.Server, false, "joining", false},
	} {
		for damage, content := range map[string]string{"junk": "junk", "empty": "", "other": otherKey(t)} {
			t.Run(tt.name+"-"+damage, func(t *testing.T) {
				o, status := c.machine(tt.role, tt.name+"-"+damage, c.token(token.Server))
				machines++
				o.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, machines})}
				if tt.begun {
					o.ServerURL, o.Token = "", ""
				}
				mustRun(t, o)
				before := identityOf(t, o)
				if tt.state != "member" {
					if err := o.unjoin(); err != nil {
						t.Fatal(err)
					}
				}
				if tt.state == "joining" {
					if err := os.WriteFile(o.joiningFile(), []byte(o.ServerURL), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(IdentityFile(o.Dir), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				if tt.name == "agent" { // it goes on while it has its certificates: TestAgentWithoutIdentity
					if err := os.Remove(pki.PairFile(o.path(nodeTLS), pki.KubeletServer)); err != nil {
						t.Fatal(err)
					}
				}
				var said []string
				o.Status = func(s string) { *status = s; said = append(said, s) }
				if tt.again {
					for _, without := range []func(*Options){func(o *Options) { o.Token = "" }, func(o *Options) { o.ServerURL = "" }} {
						p := o
						without(&p)
						err := run(t, p)
						var r *Refusal
						if !errors.As(err, &r) || r.Code != CodeIdentity || !strings.Contains(*status, "is damaged") || !strings.Contains(*status, "cairn.token") {
							t.Errorf("Run without a token = %v, status %q", err, *status)
						}
						if have, err := os.ReadFile(IdentityFile(o.Dir)); err != nil || string(have) != content {
							t.Errorf("the damaged file did not stay: %v", err)
						}
					}
				}
				if tt.again { // the server is away at first
					c.server.TLSDir = t.TempDir()
					if err := run(t, o); err == nil || IsRefusal(err) {
						t.Errorf("Run without a server = %v", err)
					}
					c.server.TLSDir = c.dir + "/" + serverTLS
					without := o
					without.Token = ""
					if err := run(t, without); !IsRefusal(err) || !strings.Contains(err.Error(), "lost the identity") {
						t.Errorf("Run with an identity that the cluster does not know = %v", err)
					}
				}
				c.await(t, o)
				if !strings.Contains(strings.Join(said, "\n"), IdentityFile(o.Dir)+" is damaged") {
					t.Errorf("said %q; want what is damaged", said)
				}
				if identityOf(t, o) == before {
					t.Error("the identity is the same")
				}
				if have, err := os.ReadFile(IdentityFile(o.Dir) + ".damaged"); err != nil || string(have) != content {
					t.Errorf("the damaged file was not kept: %q, %v", have, err)
				}
				m := mustRun(t, o)
				if m.Founded != tt.begun || lackingAny(t, o) {
					t.Errorf("membership %+v, files %v", m, files(t, o.Dir))
				}
				if tt.again && c.identityOf(o.Node) != identityOf(t, o) {
					t.Error("the cluster knows another identity")
				}
			})
		}
	}
}

// await lets the machine try until the cluster gives it its name, which another identity had.
func (c *cluster) await(t *testing.T, o Options) {
	t.Helper()
	if took, err := c.again(t, o, 10*time.Minute, nil); err != nil {
		t.Fatalf("after %v: %v", took, err)
	}
}

// otherKey is a key that is no identity.
func otherKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestUnreadableIdentity does not take a file for damaged that it may not read.
func TestUnreadableIdentity(t *testing.T) {
	o := first(t)
	if err := os.MkdirAll(IdentityFile(o.Dir), 0o700); err != nil { // a directory
		t.Fatal(err)
	}
	if err := run(t, o); err == nil {
		t.Error("Run with a directory for an identity succeeded")
	}
	if _, err := os.Stat(IdentityFile(o.Dir) + ".damaged"); err == nil {
		t.Error("it was set aside")
	}
}

// TestFounderName refuses the names that joining machines may not have either, and goes on with one that it has.
func TestFounderName(t *testing.T) {
	for name, want := range map[string]string{"192.0.2.1": "address", "localhost": "Service", "kubernetes": "Service", "kubernetes.default.svc": "Service", "a_b": "a_b", "": "hostname"} {
		o := first(t)
		o.Node = name
		wantRefusal(t, o, run(t, o), CodeName, want)
		if got := files(t, o.Dir); len(got) > 0 {
			t.Errorf("%q: files %v; want none", name, got)
		}
	}
	o := first(t)
	mustRun(t, o)
	o.Node = "localhost"
	var r *Refusal
	if err := run(t, o); !errors.As(err, &r) || r.Code != CodeName {
		t.Errorf("Run of a server that was renamed to localhost = %v", err)
	}
	m, err := membership.Load(o.membershipFile())
	if err != nil {
		t.Fatal(err)
	}
	m.Node = "localhost" // as an earlier release let it
	if err := m.Save(o.membershipFile()); err != nil {
		t.Fatal(err)
	}
	mustRun(t, o)
}

// TestDatastoreStays keeps a server of a cluster from serving another state.
func TestDatastoreStays(t *testing.T) {
	c := newCluster(t)
	joined, _ := c.machine(membership.Server, "s", c.token(token.Server))
	begun := first(t)
	begun.Settings = &membership.Settings{Datastore: membership.Etcd}
	for o, other := range map[*Options]membership.Datastore{&joined: membership.MySQL, &begun: membership.OwnStore} {
		m := mustRun(t, *o)
		have := o.Settings.Datastore
		if m.Settings.Datastore != have {
			t.Errorf("the membership says %q; want %q", m.Settings.Datastore, have)
		}
		o.Settings = &membership.Settings{Datastore: other}
		err := run(t, *o)
		var r *Refusal
		if !errors.As(err, &r) || r.Code != CodeConfig {
			t.Fatalf("Run with another datastore = %v", err)
		}
		for _, part := range []string{"cairn.datastore", other.String(), have.String(), "cairnctl reset"} {
			if !strings.Contains(r.Text, part) {
				t.Errorf("refusal %q; want it to tell %q", r.Text, part)
			}
		}
		// A membership that does not know is of a release that did not ask.
		m.Settings.Datastore = ""
		if err := m.Save(o.membershipFile()); err != nil {
			t.Fatal(err)
		}
		mustRun(t, *o)
	}
}

func TestRenamedAgent(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "old", c.token(token.Agent))
	mustRun(t, o)
	o.Node = "new"
	o.ObtainNode = c.obtain(&o)
	without := o
	without.Token = ""
	if err := run(t, without); !IsRefusal(err) {
		t.Errorf("Run under a new name without a token = %v", err)
	}
	if m := mustRun(t, o); m.Node != "new" {
		t.Errorf("membership %+v", m)
	}
	leaf, err := loadLeaf(pki.PairFile(o.path(nodeTLS), pki.KubeletClient))
	if err != nil || leaf.Subject.CommonName != "system:node:new" {
		t.Errorf("certificate of %v, %v", leaf.Subject, err)
	}
	if c.identityOf("new") != c.identityOf("old") {
		t.Error("the identity changed with the name")
	}
}

func TestRenew(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
	m := mustRun(t, o)
	own := func() RenewOptions {
		r := o.renewOptions(m)
		r.Servers = []string{"192.0.2.254:1", strings.TrimPrefix(c.http.URL, "https://")}
		r.now = c.clock
		return r
	}
	// Off for so long that all its certificates ended; the servers went on renewing theirs.
	c.advance(3 * 365 * 24 * time.Hour)
	c.renewServer(t)
	r := own()
	r.Servers = r.Servers[1:]
	certificate, settings, err := Renew(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyBootstrap(certificate.Leaf, pki.CertFile(c.dir+"/server/tls", pki.ClientCA), "a", c.clock()); err != nil {
		t.Error(err)
	}
	if settings.Flannel != "vxlan" {
		t.Errorf("settings %+v", settings)
	}
	// A lost pair is fetched again at the next start.
	lost := pki.PairFile(o.path(nodeTLS), pki.KubeletServer)
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	o.ServerURL = c.http.URL // all servers that it knew have moved; the configuration names one
	mustRun(t, o)
	if _, err := loadLeaf(lost); err != nil {
		t.Error(err)
	}
	// The server does not care about the machine's clock, as long as the machine believes the server's certificate.
	r.now = func() time.Time { return c.clock().Add(-20 * time.Hour) }
	if _, _, err := Renew(t.Context(), r); err != nil {
		t.Error(err)
	}
	r.now = func() time.Time { return time.Unix(0, 0) }
	if _, _, err := Renew(t.Context(), r); err == nil || IsRefusal(err) || !strings.Contains(err.Error(), "1970") {
		t.Errorf("Renew in 1970 = %v; want an error that passes and tells the clock", err)
	}
	r = own()
	r.Servers = r.Servers[1:]
	stranger, _ := c.machine(membership.Agent, "a", "")
	if _, err := ensureIdentity(IdentityFile(stranger.Dir), os.WriteFile); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(stranger.path(nodeTLS), os.DirFS(o.path(nodeTLS))); err != nil {
		t.Fatal(err)
	}
	s := r
	s.Dir = stranger.Dir
	wantCode(t, s, CodeIdentity)
	if err := Forget(t.Context(), c.client, "a"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r, CodeRemoved)
	r.Node = "../x"
	wantCode(t, r, CodeRemoved)
	r.Node = "first"
	r.Dir = c.dir
	if err := os.CopyFS(c.dir+"/node/tls", os.DirFS(o.path(nodeTLS))); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r, CodeRole) // servers sign theirs themselves
	other := newCluster(t)
	other.advance(c.clock().Sub(other.clock()))
	other.renewServer(t)
	r = own()
	r.Servers = []string{strings.TrimPrefix(other.http.URL, "https://")}
	wantCode(t, r, CodeCA)
}

func wantCode(t *testing.T, r RenewOptions, code Code) {
	t.Helper()
	var refusal *Refusal
	if _, _, err := Renew(t.Context(), r); !errors.As(err, &refusal) || refusal.Code != code {
		t.Errorf("Renew = %v; want a refusal for %s", err, code)
	}
}

// renewServer renews the server's certificates and serves with them.
func (c *cluster) renewServer(t *testing.T) {
	t.Helper()
	if _, err := pki.Ensure(c.server.PKI()); err != nil {
		t.Fatal(err)
	}
	address := c.http.URL
	s := c.serve(c.server.Handler(), c.dir+"/server/tls")
	c.http.Close()
	c.http = s
	if address == s.URL {
		t.Fatal("same address")
	}
	t.Cleanup(s.Close)
}

func TestWitnessRenewsItsStore(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Witness, "w", c.token(token.Server))
	m := mustRun(t, o)
	path := pki.PairFile(o.path(serverTLS), pki.Store)
	one, err := loadLeaf(path)
	if err != nil {
		t.Fatal(err)
	}
	r := o.renewOptions(m)
	if renewed, err := RenewStore(t.Context(), r); err != nil || renewed {
		t.Errorf("RenewStore of a fresh certificate = %v, %v", renewed, err)
	}
	c.advance(300 * 24 * time.Hour)
	c.renewServer(t)
	// The server that it joined by is gone: that waits while the certificate is valid, and no longer.
	if err := run(t, o); err != nil {
		t.Errorf("Run with a valid certificate and no server = %v", err)
	}
	c.advance(100 * 24 * time.Hour)
	if err := run(t, o); err == nil || IsRefusal(err) {
		t.Errorf("Run with an ended certificate and no server = %v", err)
	}
	r.Servers = []string{strings.TrimPrefix(c.http.URL, "https://")}
	if renewed, err := RenewStore(t.Context(), r); err != nil || !renewed {
		t.Fatalf("RenewStore = %v, %v", renewed, err)
	}
	two, err := loadLeaf(path)
	if err != nil || !two.NotAfter.After(one.NotAfter) || two.Subject.CommonName != "w" || one.Equal(two) {
		t.Errorf("renewed certificate %v until %v, %v", two.Subject, two.NotAfter, err)
	}
	if m := mustRun(t, o); m.Servers[0] != r.Servers[0] {
		t.Errorf("servers %v; want the one that answered first", m.Servers)
	}
}

// TestRenewBringsAuthorities replaces a CA's certificate on the machine when the cluster has another for the same key.
func TestRenewBringsAuthorities(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
	m := mustRun(t, o)
	file := pki.CertFile(c.dir+"/server/tls", pki.KubeletCA)
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	added, err := os.ReadFile(pki.CertFile(c.dir+"/server/tls", pki.StoreCA))
	if err != nil {
		t.Fatal(err)
	}
	both := append(append([]byte(nil), old...), added...)
	if err := os.WriteFile(file, both, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Renew(t.Context(), o.renewOptions(m)); err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(pki.CertFile(o.path(nodeTLS), pki.KubeletCA)); err != nil || !bytes.Equal(have, both) {
		t.Errorf("the machine's kubelet-ca is %q, %v", have, err)
	}
}

func TestObtainNodeFails(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
	obtain := o.ObtainNode
	o.ObtainNode = func(context.Context, tls.Certificate, []string, membership.Settings) error { return fs.ErrPermission }
	if err := run(t, o); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Run = %v", err)
	}
	o.ObtainNode = func(context.Context, tls.Certificate, []string, membership.Settings) error { return nil } // and wrote nothing
	if err := run(t, o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Run = %v", err)
	}
	o.ObtainNode = obtain
	mustRun(t, o)
}
