package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/store/peer"
)

// TestShortLife lets a clock run through many lives, in the steps that Interval asks for.
func TestShortLife(t *testing.T) {
	for _, life := range []time.Duration{3 * time.Minute, 10 * time.Minute, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			now := built
			o := options(t.TempDir(), now)
			o.Life, o.Now = life, func() time.Time { return now }
			ensure(t, o)
			lasting := map[string][]byte{}
			for _, name := range []string{APIServerKubeletClient, FrontProxy} {
				lasting[name] = content(t, PairFile(o.Dir, name))
			}
			renewals := 0
			for now.Before(built.Add(10 * life)) {
				now = now.Add(Interval(life))
				verify(t, o, now) // before Ensure: nothing may have ended since the last look
				if written := ensure(t, o); len(written) > 0 {
					renewals++
				}
			}
			if renewals < 10 || renewals > 20 {
				t.Errorf("%d renewals in ten lives; want one in each two thirds", renewals)
			}
			for name, before := range lasting {
				if string(content(t, PairFile(o.Dir, name))) != string(before) {
					t.Errorf("%s was renewed: exec and watch streams would end", name)
				}
			}
		})
	}
}

func TestInterval(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{
		0: time.Minute, leafLife: time.Minute, 10 * time.Minute: time.Minute, 3 * time.Minute: 18 * time.Second,
	} {
		if got := Interval(life); got != want {
			t.Errorf("Interval(%v) = %v; want %v", life, got, want)
		}
	}
}

// TestUpgrade meets the files of a release that had three authorities and a certificate for kube-proxy.
func TestUpgrade(t *testing.T) {
	o := options(t.TempDir(), built)
	ensure(t, o)
	server := content(t, PairFile(o.Dir, ServerCA))
	for _, name := range []string{KubeletCA, StoreCA} {
		for _, path := range []string{PairFile(o.Dir, name), CertFile(o.Dir, name)} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Remove(PairFile(o.Dir, Store)); err != nil {
		t.Fatal(err)
	}
	e := &ensurer{Options: o.withDefaults()}
	issuer, err := load(PairFile(o.Dir, ServerCA))
	if err != nil {
		t.Fatal(err)
	}
	year := ClientRequest("x")
	year.Now = o.Now
	for _, name := range []string{KubeletServer, APIServerKubeletClient, "kube-proxy"} {
		if _, err := e.create(name, year.template(issuer.cert), &issuer); err != nil {
			t.Fatal(err)
		}
	}
	got := ensure(t, o)
	slices.Sort(got)
	want := []string{
		"apiserver-kubelet-client.pem", "kubelet-ca.crt", "kubelet-ca.pem", "kubelet-server.pem", "store-ca.crt", "store-ca.pem", "store.pem",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Ensure after the upgrade (-want +got): %s", d)
	}
	if string(content(t, PairFile(o.Dir, ServerCA))) != string(server) {
		t.Error("the server's authority was replaced")
	}
	if _, err := os.Stat(PairFile(o.Dir, "kube-proxy")); err == nil {
		t.Error("kube-proxy.pem is still there: it would be reported as expiring")
	}
	verify(t, o, built)
}

// TestJoined brings up a second server with what the first one gives it, and takes each of these away.
func TestJoined(t *testing.T) {
	first := options(t.TempDir(), built)
	if written, err := EnsureAuthorities(first); err != nil || len(written) != 11 {
		t.Fatalf("EnsureAuthorities = %v, %v; want 5 authorities twice and a key", written, err)
	}
	given := []string{}
	for _, name := range Authorities() {
		given = append(given, PairFile("", name))
	}
	given = append(given, ServiceAccountKey(""))
	for _, lost := range append([]string{""}, given...) {
		o := options(t.TempDir(), built)
		o.Node, o.Joined = "shop-2", true
		for _, name := range given {
			if name != lost {
				if err := os.WriteFile(o.Dir+"/"+name, content(t, first.Dir+"/"+name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err := Ensure(o)
		if lost == "" {
			if err != nil {
				t.Fatal(err)
			}
			verify(t, o, built)
			continue
		}
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), lost) {
			t.Errorf("Ensure without %s = %v; want an error that says so", lost, err)
		}
		if _, err := os.Stat(o.Dir + "/" + lost); err == nil {
			t.Errorf("a joined server created %s", lost)
		}
	}
}

func TestLostAuthority(t *testing.T) {
	o := options(t.TempDir(), built)
	ensure(t, o)
	if err := os.Remove(PairFile(o.Dir, ServerCA)); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(o); err == nil || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("Ensure = %v; want an error: what the lost key signed is still in use", err)
	}
}

// TestWitness has the store's certificate alone, signed by another machine.
func TestWitness(t *testing.T) {
	server := options(t.TempDir(), built)
	ensure(t, server)
	now := built
	o := Options{Dir: t.TempDir(), Node: "witness", Life: 30 * time.Minute, Floor: built, Now: func() time.Time { return now }}
	if err := os.WriteFile(CertFile(o.Dir, StoreCA), content(t, CertFile(server.Dir, StoreCA)), 0o644); err != nil {
		t.Fatal(err)
	}
	sign := func() {
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		r := StoreWitnessRequest("witness")
		r.Life, r.Now, r.Floor = o.Life, o.Now, o.Floor
		pem, err := SignRequest(server.Dir, StoreCA, request(t, key), r)
		if err != nil {
			t.Fatal(err)
		}
		data, err := EncodePair(pem, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(PairFile(o.Dir, Store), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serves := func(want bool) {
		t.Helper()
		if got, err := Serves(o, Store); err != nil || got != want {
			t.Errorf("Serves at %v = %v, %v; want %v", now, got, err, want)
		}
	}
	serves(false)
	sign()
	serves(true)
	p, err := load(PairFile(o.Dir, Store))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cert.VerifyHostname(peer.ServerName); err != nil || p.cert.Subject.CommonName != "witness" || len(p.cert.ExtKeyUsage) != 2 ||
		!slices.Equal(p.cert.Subject.Organization, []string{peer.WitnessOrganization}) {
		t.Errorf("certificate of %v for %v, usages %v: %v", p.cert.Subject, p.cert.DNSNames, p.cert.ExtKeyUsage, err)
	}
	now = built.Add(25 * time.Minute)
	serves(false)
	sign()
	serves(true)
	now = built.AddDate(1, 0, 0) // switched off
	serves(false)
	if _, err := EnsureLeaf(o, Store); err == nil {
		t.Error("EnsureLeaf worked without the authority's key")
	}
	all, err := Expiries(o.Dir)
	if err != nil || len(all) != 2 || all[0].Name != Store || all[1].Name != StoreCA {
		t.Errorf("Expiries = %v, %v; want store and store-ca", all, err)
	}
}

func TestEnsureLeaf(t *testing.T) {
	o := options(t.TempDir(), built)
	if _, err := EnsureLeaf(o, Store); err == nil {
		t.Error("EnsureLeaf created a leaf without its authority")
	}
	if _, err := EnsureAuthorities(o); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureLeaf(o, "nobody"); err == nil {
		t.Error("EnsureLeaf created a leaf that nobody knows")
	}
	for _, want := range [][]string{{"store.pem"}, nil} {
		if got, err := EnsureLeaf(o, Store); err != nil || !slices.Equal(got, want) {
			t.Errorf("EnsureLeaf = %v, %v; want %v", got, err, want)
		}
	}
}

func TestSign(t *testing.T) {
	o := options(t.TempDir(), built)
	ensure(t, o)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	ask := ClientRequest("cairn:join:shop-3", "cairn:joining")
	ask.Life, ask.Now, ask.Floor = 10*time.Minute, func() time.Time { return built.Add(time.Hour) }, built
	data, err := Sign(o.Dir, ClientCA, key.Public(), ask)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject.CommonName != "cairn:join:shop-3" || !slices.Equal(c.Subject.Organization, []string{"cairn:joining"}) || c.IsCA {
		t.Errorf("certificate of %v, authority %v", c.Subject, c.IsCA)
	}
	if want := built.Add(time.Hour + 10*time.Minute); !c.NotAfter.Equal(want) || !c.NotBefore.Equal(built.Add(-backdate)) {
		t.Errorf("valid from %v to %v; want to %v", c.NotBefore, c.NotAfter, want)
	}

	long := ask
	long.Life = 100 * 365 * 24 * time.Hour
	if data, err = Sign(o.Dir, ClientCA, key.Public(), long); err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(data)
	if c, err = x509.ParseCertificate(block.Bytes); err != nil || !c.NotAfter.Equal(built.Add(authorityLife)) {
		t.Errorf("valid to %v, %v; want the authority's end", c.NotAfter, err)
	}

	late := ask
	late.Now, late.Floor = func() time.Time { return built.Add(authorityLife + 2*backdate) }, time.Time{}
	forged := request(t, key)
	forged.RawTBSCertificateRequest = append(slices.Clone(forged.RawTBSCertificateRequest), 0)
	for name, do := range map[string]func() ([]byte, error){
		"no user":           func() ([]byte, error) { return Sign(o.Dir, ClientCA, key.Public(), Request{Usages: ask.Usages}) },
		"no usage":          func() ([]byte, error) { return Sign(o.Dir, ClientCA, key.Public(), Request{User: "x"}) },
		"no authority":      func() ([]byte, error) { return Sign(t.TempDir(), ClientCA, key.Public(), ask) },
		"ended authority":   func() ([]byte, error) { return Sign(o.Dir, ClientCA, key.Public(), late) },
		"not a key":         func() ([]byte, error) { return Sign(o.Dir, ClientCA, "key", ask) },
		"no request":        func() ([]byte, error) { return SignRequest(o.Dir, ClientCA, nil, ask) },
		"another's request": func() ([]byte, error) { return SignRequest(o.Dir, ClientCA, forged, ask) },
	} {
		if data, err := do(); err == nil {
			t.Errorf("%s: signed %s", name, data)
		}
	}
}

func TestExpiries(t *testing.T) {
	o := options(t.TempDir(), built)
	o.Life = time.Hour
	ensure(t, o)
	if all, err := Expiries(o.Dir + "/none"); err != nil || len(all) > 0 {
		t.Errorf("Expiries without the directory = %v, %v; want none", all, err)
	}
	if err := os.WriteFile(PairFile(o.Dir, Scheduler), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Expiries(o.Dir)
	if err == nil || !strings.Contains(err.Error(), "scheduler.pem") {
		t.Errorf("error = %v; want the damaged file", err)
	}
	got := map[string]time.Duration{}
	authorities := 0
	for _, e := range all {
		if _, twice := got[e.Name]; twice {
			t.Errorf("%s counts twice", e.Name)
		}
		got[e.Name] = e.NotAfter.Sub(built)
		if e.Authority {
			authorities++
		}
	}
	if authorities != 5 || len(got) != 13 || got[Store] != time.Hour || got[StoreCA] != authorityLife || got[FrontProxy] != authorityLife {
		t.Errorf("Expiries = %v, %d authorities; want 5 authorities and 8 leaves", got, authorities)
	}
}

func TestDualStack(t *testing.T) {
	o := options(t.TempDir(), built)
	o.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("::ffff:192.0.2.7")}
	o.ServiceIP = netip.MustParseAddr("fd00:43::1")
	ensure(t, o)
	if again := ensure(t, o); len(again) > 0 {
		t.Errorf("second Ensure wrote %v; want nothing", again)
	}
	for name, hosts := range map[string][]string{
		APIServer:     {"2001:db8::7", "192.0.2.7", "fd00:43::1", "127.0.0.1", "::1"},
		KubeletServer: {"2001:db8::7", "192.0.2.7", "shop-1"},
	} {
		p, err := load(PairFile(o.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			if err := p.cert.VerifyHostname(h); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func request(t *testing.T, key *ecdsa.PrivateKey) *x509.CertificateRequest {
	t.Helper()
	if key.Curve != elliptic.P256() {
		t.Fatalf("key on curve %v; want P-256", key.Params().Name)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
