package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// rotating is a cluster whose authorities are replaced, and one machine of it.
type rotating struct {
	*cluster
	address string // of a server that shows the certificate that is there at the moment
	all     []pki.Successor

	mu    sync.Mutex
	asked map[string]int // requests by path
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	c := &rotating{cluster: newCluster(t), asked: map[string]int{}}
	pair := pki.PairFile(c.dir+"/server/tls", pki.APIServer)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.asked[r.URL.Path]++
		c.mu.Unlock()
		w.Header().Set("Date", c.clock().UTC().Format(http.TimeFormat))
		c.server.Handler().ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		own, err := tls.LoadX509KeyPair(pair, pair)
		return &tls.Config{Certificates: []tls.Certificate{own}}, err
	}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	c.address = s.Listener.Addr().String()
	c.http.URL = s.URL
	var err error
	if c.all, err = pki.Successors(c.server.PKI()); err != nil {
		t.Fatal(err)
	}
	return c
}

// requests returns how many came since the last call.
func (c *rotating) requests() (looks, renewals int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	looks, renewals = c.asked[CAPath], c.asked[RenewPath]
	clear(c.asked)
	return looks, renewals
}

func (c *rotating) bring(stages ...func(pki.Options, []pki.Successor) (bool, error)) {
	c.t.Helper()
	for _, stage := range stages {
		if _, err := stage(c.server.PKI(), c.all); err != nil {
			c.t.Fatal(err)
		}
	}
}

// joined lets a machine join, and returns how it follows.
func (c *rotating) joined(role membership.Role) (Options, RenewOptions, FollowOptions) {
	c.t.Helper()
	o, _ := c.machine(role, "shop-"+string(role), c.token(token.Server))
	m := mustRun(c.t, o)
	r := o.renewOptions(m).withDefaults()
	return o, r, c.following(o, r)
}

func (c *rotating) following(o Options, r RenewOptions) FollowOptions {
	return FollowOptions{
		Servers: func() []string { return []string{c.address} },
		Certificates: func(ctx context.Context) error {
			if o.Role == membership.Witness {
				_, err := RenewStore(ctx, with(r, c.address))
				return err
			}
			return c.signNode(o)
		},
	}
}

func (c *rotating) recorded(node string) string {
	c.t.Helper()
	r, err := getRecord(c.t.Context(), c.client, node)
	if err != nil || r == nil {
		c.t.Fatalf("record of %s: %v, %v", node, r, err)
	}
	return r.Authorities
}

func (c *rotating) bundle() string {
	c.t.Helper()
	hash, err := BundleHash(c.caFile())
	if err != nil {
		c.t.Fatal(err)
	}
	return hash
}

// accepted checks that a server knows the machine by its certificates, and that the machine has what servers have.
func (c *rotating) accepted(o Options) {
	c.t.Helper()
	tlsDir := c.dir + "/server/tls"
	leaves := map[string]string{o.path(nodeTLS, "kubelet-client"): pki.ClientCA, o.path(nodeTLS, "kubelet-server"): pki.KubeletCA}
	if o.Role == membership.Witness {
		leaves = map[string]string{o.path(serverTLS, "store"): pki.StoreCA}
	}
	for path, authority := range leaves {
		verifies(c.t, path+".pem", pki.CertFile(tlsDir, authority), c.clock())
		verifies(c.t, path+".pem", pki.CertFile(filepath.Dir(path), authority), c.clock())
	}
	files, optional := bundleFor(o.Role)
	for _, f := range files {
		want, err := os.ReadFile(filepath.Join(tlsDir, f.name))
		if optional(f) && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if have, err := os.ReadFile(o.path(f.dir, f.name)); err != nil || string(have) != string(want) {
			c.t.Errorf("%s: %s is not what the servers have: %v", o.Role, f.name, err)
		}
	}
}

// verifies checks a pair's certificate, with what follows it, against a file of authorities.
func verifies(t *testing.T, pair, authorities string, now time.Time) {
	t.Helper()
	certs, err := cert.CertsFromFile(pair)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := cert.CertsFromFile(authorities)
	if err != nil {
		t.Fatal(err)
	}
	v := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, c := range trusted {
		v.Roots.AddCert(c)
	}
	for _, c := range certs[1:] {
		v.Intermediates.AddCert(c)
	}
	if _, err := certs[0].Verify(v); err != nil {
		t.Errorf("%s against %s: %v", pair, authorities, err)
	}
}

// TestFollow brings an agent and a witness through all stages: each ends acknowledged, and costs nothing but looks then.
func TestFollow(t *testing.T) {
	for _, role := range []membership.Role{membership.Agent, membership.Witness} {
		t.Run(string(role), func(t *testing.T) {
			c := newRotating(t)
			o, r, f := c.joined(role)
			acknowledged := ""
			for _, stage := range []struct {
				name string
				do   []func(pki.Options, []pki.Successor) (bool, error)
			}{
				{"old", nil}, {"trust", []func(pki.Options, []pki.Successor) (bool, error){pki.Trust}},
				{"sign", []func(pki.Options, []pki.Successor) (bool, error){pki.Succeed}},
				{"retire", []func(pki.Options, []pki.Successor) (bool, error){pki.Retire}},
			} {
				c.bring(stage.do...)
				c.requests()
				hash, err := r.follow(t.Context(), f, acknowledged)
				if err != nil {
					t.Fatalf("%s: %v", stage.name, err)
				}
				if want := c.bundle(); hash != want || c.recorded(o.Node) != want {
					t.Errorf("%s: acknowledged %s, recorded %s; want %s", stage.name, hash, c.recorded(o.Node), want)
				}
				if stage.name == "old" {
					if looks, renewals := c.requests(); looks != 1 || renewals != 1 {
						t.Errorf("%d looks and %d renewals at the start; want one of each", looks, renewals)
					}
				}
				c.accepted(o)
				acknowledged = hash
				c.requests()
				if hash, err = r.follow(t.Context(), f, acknowledged); err != nil || hash != acknowledged {
					t.Errorf("%s: again: %s, %v", stage.name, hash, err)
				}
				if looks, renewals := c.requests(); looks != 1 || renewals != 0 {
					t.Errorf("%s: %d looks and %d renewals when nothing changed; want one look", stage.name, looks, renewals)
				}
			}
			mustRun(t, o)
		})
	}
}

// TestFollowAfterRotation switches machines off before a rotation and on after it: no server knows them by their
// certificates, and they know the servers by the cross certificate alone.
func TestFollowAfterRotation(t *testing.T) {
	for _, role := range []membership.Role{membership.Agent, membership.Witness} {
		for _, years := range []int{0, 2} { // with certificates that are valid, and ended
			c := newRotating(t)
			o, r, f := c.joined(role)
			c.bring(pki.Trust, pki.Succeed, pki.Retire)
			c.advance(time.Duration(years) * 365 * 24 * time.Hour)
			if _, err := pki.Ensure(c.server.PKI()); err != nil {
				t.Fatal(err)
			}
			o.ServerURL, o.Token = c.http.URL, "" // it is a member
			mustRun(t, o)
			if hash, err := r.follow(t.Context(), f, ""); err != nil || hash != c.bundle() || c.recorded(o.Node) != hash {
				t.Errorf("%s after %d years: acknowledged %s, recorded %s, %v", role, years, hash, c.recorded(o.Node), err)
			}
			c.accepted(o)
		}
	}
}

// TestFollowAcknowledgesLate does not acknowledge what would cut the machine off when the old authorities retire.
func TestFollowAcknowledgesLate(t *testing.T) {
	c := newRotating(t)
	o, r, f := c.joined(membership.Agent)
	before, err := r.follow(t.Context(), f, "")
	if err != nil {
		t.Fatal(err)
	}
	c.bring(pki.Trust, pki.Succeed)
	good := f.Certificates
	for what, certificates := range map[string]func(context.Context) error{
		"renewed":    func(context.Context) error { return errors.New("no answer to the request") },
		"not of the": func(context.Context) error { return nil }, // the leader signs with the old one yet
	} {
		f.Certificates = certificates
		if _, err := r.follow(t.Context(), f, before); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(what, "ed")) {
			t.Errorf("follow = %v; want an error about %q", err, what)
		}
		if _, _, err := Renew(t.Context(), with(r, c.address)); err != nil { // for another reason
			t.Error(err)
		}
		if got := c.recorded(o.Node); got != before {
			t.Errorf("recorded %s while the certificates are old; want %s", got, before)
		}
	}
	f.Certificates = good
	if hash, err := r.follow(t.Context(), f, before); err != nil || c.recorded(o.Node) != hash || hash == before {
		t.Errorf("follow = %s, %v; recorded %s", hash, err, c.recorded(o.Node))
	}
}

func with(r RenewOptions, servers ...string) RenewOptions {
	r.Servers = servers
	return r
}

// TestAuthoritiesOfOthers records nothing that a server does not hold itself: a renewal that somebody repeats holds nobody up.
func TestAuthoritiesOfOthers(t *testing.T) {
	c := newRotating(t)
	o, r, f := c.joined(membership.Agent)
	before, err := r.follow(t.Context(), f, "")
	if err != nil {
		t.Fatal(err)
	}
	identity, err := loadIdentity(IdentityFile(o.Dir))
	if err != nil {
		t.Fatal(err)
	}
	public, err := publicDER(identity)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := identityHash(&identity.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	c.bring(pki.Trust, pki.Succeed)
	if _, err := r.follow(t.Context(), f, before); err != nil {
		t.Fatal(err)
	}
	now := c.recorded(o.Node)
	for _, claimed := range []string{before, "", "junk", strings.Repeat("x", 1<<20)} {
		if _, err := c.server.renewed(t.Context(), &renewal{Node: o.Node, Identity: public, CSR: csr, Authorities: claimed}, hash); err != nil {
			t.Error(err)
		}
		if got := c.recorded(o.Node); got != now {
			t.Errorf("recorded %.80q; want %s as before", got, now)
		}
	}
}

// TestFollowPowerCuts cuts the power at each write while a machine follows over a whole rotation and over its first stages.
// What is left can be used, and the next look completes it.
func TestFollowPowerCuts(t *testing.T) {
	for _, role := range []membership.Role{membership.Agent, membership.Witness} {
		c := newRotating(t)
		o, r, _ := c.joined(role)
		before := o.Dir
		for _, stages := range [][]func(pki.Options, []pki.Successor) (bool, error){{pki.Trust, pki.Succeed}, {pki.Retire}} {
			c.bring(stages...)
			cuts := 0
			for n := 0; ; n++ {
				o.Dir, o.ServerURL = t.TempDir(), c.http.URL
				if err := os.CopyFS(o.Dir, os.DirFS(before)); err != nil {
					t.Fatal(err)
				}
				if err := SetAuthorities(t.Context(), c.client, o.Node, ""); err != nil {
					t.Fatal(err)
				}
				r.Dir, r.write = o.Dir, cutAt(n, false)
				_, err := r.follow(t.Context(), c.following(o, r), "")
				if err == nil {
					break
				}
				if !errors.Is(err, errCut) {
					t.Fatalf("%s, cut %d: %v", role, n, err)
				}
				cuts++
				if role == membership.Witness { // else the store would not start
					verifies(t, pki.PairFile(o.path(serverTLS), pki.Store), pki.CertFile(o.path(serverTLS), pki.StoreCA), c.clock())
				}
				mustRun(t, o)
				r.write = atomicfile.Write
				if hash, err := r.follow(t.Context(), c.following(o, r), ""); err != nil || c.recorded(o.Node) != hash {
					t.Errorf("%s, cut %d: again: %s, %v; recorded %s", role, n, hash, err, c.recorded(o.Node))
				}
				c.accepted(o)
			}
			if cuts < 3 {
				t.Errorf("%s: %d cuts; want one at each write", role, cuts)
			}
		}
	}
}

// TestFollowLostFiles follows again when somebody put files of before on the disk, though they were acknowledged once.
func TestFollowLostFiles(t *testing.T) {
	for _, role := range []membership.Role{membership.Agent, membership.Witness} {
		c := newRotating(t)
		o, r, f := c.joined(role)
		before := t.TempDir()
		if err := os.CopyFS(before, os.DirFS(o.Dir)); err != nil {
			t.Fatal(err)
		}
		c.bring(pki.Trust, pki.Succeed)
		acknowledged, err := r.follow(t.Context(), f, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(o.Dir); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(o.Dir, os.DirFS(before)); err != nil {
			t.Fatal(err)
		}
		if hash, err := r.follow(t.Context(), f, acknowledged); err != nil || hash != acknowledged || r.follows() != hash {
			t.Errorf("%s: follow = %s, %v; has %s; want %s", role, hash, err, r.follows(), acknowledged)
		}
		c.accepted(o)
	}
}

// TestFollowAcknowledgesAnew tells the cluster what it forgot when its data was restored, within an hour, and what it
// waits for is no fault.
func TestFollowAcknowledgesAnew(t *testing.T) {
	c := newRotating(t)
	o, r, f := c.joined(membership.Agent)
	var log strings.Builder
	r.Log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	good := f.Certificates
	var passed, forgotten, back time.Duration
	f.pause = func(ctx context.Context, d time.Duration) error {
		switch {
		case passed == 0:
			c.bring(pki.Trust, pki.Succeed)
		case forgotten == 0 && c.recorded(o.Node) == c.bundle():
			forgotten = passed
			if err := SetAuthorities(ctx, c.client, o.Node, "of before"); err != nil {
				t.Error(err)
			}
		case forgotten > 0 && c.recorded(o.Node) == c.bundle():
			back = passed
			cancel()
		case passed > 3*followAnew:
			cancel()
		}
		passed += d
		return ctx.Err()
	}
	late := 0
	f.Certificates = func(ctx context.Context) error { // the leader signs with the old one at first
		if late++; late == 1 {
			return nil
		}
		return good(ctx)
	}
	if err := Follow(ctx, r, f); err != nil {
		t.Errorf("Follow = %v; want nil", err)
	}
	if wait := back - forgotten; back == 0 || wait > followAnew*3/2 {
		t.Errorf("acknowledged anew after %s (0: never); want about %s", wait, followAnew)
	}
	if text := log.String(); strings.Contains(text, "level=ERROR") || strings.Count(text, "not of the new ones yet") != 1 || strings.Count(text, "this machine follows") != 1 {
		t.Errorf("log:\n%s", text)
	}
}

// TestFollowRemoved learns from a look that the machine was removed.
func TestFollowRemoved(t *testing.T) {
	c := newRotating(t)
	o, r, f := c.joined(membership.Witness)
	if err := Forget(t.Context(), c.client, o.Node); err != nil {
		t.Fatal(err)
	}
	var refusal *Refusal
	if _, err := r.follow(t.Context(), f, ""); !errors.As(err, &refusal) || refusal.Code != CodeRemoved || !Removed(o.Dir) {
		t.Errorf("follow = %v, removed %v; want that it was removed", err, Removed(o.Dir))
	}
}

// TestFollowForEver looks soon after the start, then as often as the certificates' life asks for, says once what is wrong,
// and ends only when it is told to.
func TestFollowForEver(t *testing.T) {
	c := newRotating(t)
	_, r, f := c.joined(membership.Agent)
	var log strings.Builder
	r.Log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up := true
	f.Servers = func() []string {
		if up {
			return []string{"127.0.0.1:1", c.address}
		}
		return []string{"127.0.0.1:1"}
	}
	var pauses []time.Duration
	f.pause = func(ctx context.Context, d time.Duration) error {
		pauses = append(pauses, d)
		switch len(pauses) {
		case 2:
			up = false
		case 9:
			up = true
			c.bring(pki.Trust, pki.Succeed)
		case 11:
			cancel()
		}
		return ctx.Err()
	}
	if err := Follow(ctx, r, f); err != nil {
		t.Errorf("Follow = %v; want nil", err)
	}
	if pauses[0] < followFirst || pauses[0] > 3*followFirst {
		t.Errorf("first look after %v; want some seconds", pauses[0])
	}
	for i, want := range []time.Duration{followInterval, followAgain, 2 * followAgain, 4 * followAgain, 8 * followAgain, 16 * followAgain, followInterval, followInterval, followInterval} {
		if got := pauses[i+1]; got < want || got > want*6/5 {
			t.Errorf("pause %d is %v; want %v and a bit", i+1, got, want)
		}
	}
	if n := strings.Count(log.String(), "cannot follow"); n != 1 {
		t.Errorf("said %d times what is wrong; want once:\n%s", n, log.String())
	}
	if c.recorded("shop-agent") != c.bundle() || !strings.Contains(log.String(), "this machine follows") {
		t.Errorf("it does not follow afterwards:\n%s", log.String())
	}
	short := r
	short.Life = 3 * time.Minute
	if got, want := short.followInterval(), 90*time.Second; got != want {
		t.Errorf("certificates of 3 min are looked at each %v; want %v", got, want)
	}
}

// TestRotationKeepsServersOut lets agents join while the authorities are replaced, and servers afterwards, with all files.
func TestRotationKeepsServersOut(t *testing.T) {
	c := newRotating(t)
	c.bring(pki.Trust)
	secrets := c.client.CoreV1().Secrets(Namespace)
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: RotationName, Namespace: Namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	once, _ := c.create(TokenRequest{Role: "server", Once: true})
	o, status := c.machine(membership.Server, "second", once)
	err := run(t, o)
	if err == nil || IsRefusal(err) || !strings.Contains(*status, "authorities are being replaced") {
		t.Errorf("Run = %v, status %q; want that it tries again", err, *status)
	}
	if r, err := getRecord(t.Context(), c.client, "second"); err != nil || r != nil {
		t.Errorf("the server that was put off has the record %v, %v", r, err)
	}
	agent, _, _ := c.joined(membership.Agent)
	c.accepted(agent)
	c.bring(pki.Succeed, pki.Retire)
	if err := secrets.Delete(t.Context(), RotationName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	text, err := TokenText(t.Context(), c.client, token.Server, c.caFile())
	if err != nil {
		t.Fatal(err)
	}
	o, _ = c.machine(membership.Server, "second", text)
	mustRun(t, o)
	for _, f := range crossFor(membership.Server) {
		want, err := os.ReadFile(filepath.Join(c.dir, serverTLS, f.name))
		if err != nil {
			t.Fatal(err)
		}
		if have, err := os.ReadFile(o.path(f.dir, f.name)); err != nil || string(have) != string(want) {
			t.Errorf("%s of the new server: %v", f.name, err)
		}
	}
	verifies(t, pki.PairFile(o.path(serverTLS), pki.APIServer), pki.CertFile(agent.path(nodeTLS), pki.ServerCA), c.clock())
	if certs, err := cert.CertsFromFile(pki.PairFile(o.path(serverTLS), pki.APIServer)); err != nil || len(certs) != 2 {
		t.Errorf("the new server shows %d certificates, %v; want a cross certificate behind its own", len(certs), err)
	}
}

// TestOptionalFiles takes a server without cross certificates, or with damaged ones, and keeps those that are there.
func TestOptionalFiles(t *testing.T) {
	c := newRotating(t)
	c.bring(pki.Trust, pki.Succeed, pki.Retire)
	path := pki.CrossFile(c.dir+"/server/tls", pki.ClientCA)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, r, f := c.joined(membership.Agent)
	own := pki.CrossFile(o.path(nodeTLS), pki.ClientCA)
	for i, damage := range []func() error{
		func() error { return os.WriteFile(path, nil, 0o644) },
		func() error { return os.WriteFile(path, []byte("junk"), 0o644) },
		func() error { return os.Remove(path) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.follow(t.Context(), f, ""); err != nil {
			t.Error(err)
		}
		if have, err := os.ReadFile(own); err != nil || string(have) != string(whole) {
			t.Errorf("the machine's file is %q, %v; want it as it was", have, err)
		}
		fresh, _ := c.machine(membership.Server, fmt.Sprintf("fresh-%d", i), c.token(token.Server))
		fresh.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})}
		mustRun(t, fresh)
	}
	if err := atomicfile.Write(path, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.follow(t.Context(), f, ""); err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(own); err != nil || string(have) != string(whole) {
		t.Errorf("the machine's file is %q, %v; want it replaced", have, err)
	}
	info, err := os.Stat(own)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestSetAuthorities keeps what is recorded besides, and forgets it when the machine joins again.
func TestSetAuthorities(t *testing.T) {
	c := newRotating(t)
	o, _, _ := c.joined(membership.Agent)
	if err := AddClientKey(t.Context(), c.client, o.Node, "aa"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := SetAuthorities(t.Context(), c.client, o.Node, "id/trust"); err != nil {
			t.Fatal(err)
		}
	}
	version := c.secretOf(o.Node).ResourceVersion
	if err := SetAuthorities(t.Context(), c.client, o.Node, "id/trust"); err != nil || c.secretOf(o.Node).ResourceVersion != version {
		t.Errorf("SetAuthorities wrote what was there: %v", err)
	}
	all, err := ListNodes(t.Context(), c.client)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Name == o.Node && (r.Authorities != "id/trust" || len(r.ClientKeys) != 1) {
			t.Errorf("record %+v", r)
		}
	}
	if err := SetAuthorities(t.Context(), c.client, "nobody", "x"); err == nil {
		t.Error("SetAuthorities of nobody succeeded")
	}
	if err := o.unjoin(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, o)
	if got := c.recorded(o.Node); got != "" {
		t.Errorf("recorded %q after joining again; want nothing", got)
	}
}

func TestBundleHash(t *testing.T) {
	c := newRotating(t)
	one := c.bundle()
	data, err := os.ReadFile(c.caFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.caFile(), append([]byte("# a comment\n"), data...), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := c.bundle(); got != one || len(got) != 64 {
		t.Errorf("BundleHash = %s; want %s whatever is around the certificates", got, one)
	}
	c.bring(pki.Trust)
	two := c.bundle()
	c.bring(pki.Succeed)
	if three := c.bundle(); two == one || three == two {
		t.Error("other certificates, or another order, have one hash")
	}
	for _, data := range []string{"", "junk"} {
		if err := os.WriteFile(c.caFile(), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := BundleHash(c.caFile()); err == nil {
			t.Errorf("BundleHash of %q = %s", data, got)
		}
	}
}
