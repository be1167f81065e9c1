package pki

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"k8s.io/client-go/util/cert"
)

// TestEnsureKeepsBundle repairs the authorities' certificates and keeps what is trusted besides.
func TestEnsureKeepsBundle(t *testing.T) {
	s := newShop(t)
	read := func(stage string) []byte { return content(t, CertFile(s.dir["shop-1"][stage], ServerCA)) }
	own, next, two := read("old"), read("retire"), read("trust")
	cross := content(t, CrossFile(s.dir["shop-1"]["sign"], ServerCA))
	for name, tt := range map[string]struct{ have, want []byte }{
		"in order":         {two, two},
		"the other first":  {read("sign"), two},
		"own lacks":        {next, two},
		"twice":            {slices.Concat(own, next, own), two},
		"a cross":          {slices.Concat(own, cross, next), two},
		"damaged":          {[]byte("junk"), own},
		"damaged in parts": {slices.Concat(own, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), own},
		"empty":            {nil, own},
	} {
		o := at(clone(t, s.dir["shop-1"]["old"]), "shop-1")
		if err := os.WriteFile(CertFile(o.Dir, ServerCA), tt.have, 0o644); err != nil {
			t.Fatal(err)
		}
		written := ensure(t, o)
		if got := content(t, CertFile(o.Dir, ServerCA)); !bytes.Equal(got, tt.want) {
			t.Errorf("%s: Ensure left %s", name, got)
		}
		if changed := !bytes.Equal(tt.have, tt.want); slices.Contains(written, "server-ca.crt") != changed || len(written) > 1 {
			t.Errorf("%s: Ensure wrote %v", name, written)
		}
	}
}

// TestChains puts the cross certificate behind what is signed, and issues leaves anew that lack it, have it to no purpose or
// another one.
func TestChains(t *testing.T) {
	s := newShop(t)
	o := at(clone(t, s.dir["shop-1"]["sign"]), "shop-1")
	path := CrossFile(o.Dir, KubeletCA)
	cross := content(t, path)
	for _, step := range []func() error{
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path, cross, 0o644) },
		func() error { return os.WriteFile(path, []byte("junk"), 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if got := ensure(t, o); !slices.Equal(got, []string{"kubelet-server.pem"}) {
			t.Errorf("Ensure wrote %v; want the leaf of that authority", got)
		}
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	ask := ClientRequest("x")
	ask.Now = o.Now
	for authority, want := range map[string]int{ClientCA: 2, KubeletCA: 1} {
		data, err := Sign(o.Dir, authority, key.Public(), ask)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := cert.ParseCertsPEM(data)
		if err != nil || len(certs) != want {
			t.Errorf("Sign with %s returned %d certificates, %v; want %d", authority, len(certs), err, want)
		}
		alone := encodeCert(certs[0])
		if got, err := WithCross(o.Dir, authority, alone); err != nil || !bytes.Equal(got, data) {
			t.Errorf("WithCross of what %s signed = %s, %v; want what Sign returns", authority, got, err)
		}
		if got, err := WithCross(o.Dir, authority, data); err != nil || !bytes.Equal(got, data) {
			t.Errorf("WithCross of a chain = %s, %v; want it as it is", got, err)
		}
		if got, err := WithCross(s.dir["shop-1"]["old"], authority, alone); err != nil || !bytes.Equal(got, alone) {
			t.Errorf("WithCross where there is none = %s, %v", got, err)
		}
	}
	if _, err := WithCross(o.Dir, ClientCA, []byte("junk")); err == nil {
		t.Error("WithCross took what is no certificate")
	}
	old, err := loadCert(PairFile(s.dir["shop-1"]["old"], KubeletClient))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := WithCross(o.Dir, ClientCA, encodeCert(old)); err != nil || !bytes.Equal(got, encodeCert(old)) {
		t.Errorf("WithCross of what the authority before signed = %s, %v; want it alone", got, err)
	}
}

// TestRotationOfWitness tells a witness, which has no authority's key, when to ask for another certificate.
func TestRotationOfWitness(t *testing.T) {
	s := newShop(t)
	o := at(t.TempDir(), "witness")
	sign := func(stage string) {
		t.Helper()
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		r := StoreWitnessRequest("witness")
		r.Now, r.Floor = o.Now, o.Floor
		data, err := Sign(s.dir["shop-2"][stage], StoreCA, key.Public(), r)
		if err != nil {
			t.Fatal(err)
		}
		if data, err = EncodePair(data, key); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(PairFile(o.Dir, Store), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		signed, trusts string
		serves         bool
		current        bool
	}{
		{"old", "old", true, true},
		{"old", "trust", true, true},
		{"old", "sign", false, false},
		{"old", "retire", false, false},
		{"sign", "trust", false, true},
		{"sign", "sign", true, true},
		{"sign", "retire", true, true},
		{"retire", "old", false, false},
	} {
		sign(tt.signed)
		data := content(t, CertFile(s.dir["shop-2"][tt.trusts], StoreCA))
		if err := os.WriteFile(CertFile(o.Dir, StoreCA), data, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Serves(o, Store); err != nil || got != tt.serves {
			t.Errorf("signed at %s, trusts %s: Serves = %v, %v; want %v", tt.signed, tt.trusts, got, err, tt.serves)
		}
		trusted, err := cert.ParseCertsPEM(data)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := loadCert(PairFile(o.Dir, Store))
		if err != nil {
			t.Fatal(err)
		}
		if got := Current(trusted, leaf); got != tt.current {
			t.Errorf("signed at %s, trusts %s: Current = %v; want %v", tt.signed, tt.trusts, got, tt.current)
		}
	}
}

// TestRotationExpiries counts an authority by the certificate that signs, and nothing twice.
func TestRotationExpiries(t *testing.T) {
	s := newShop(t)
	for _, stage := range stages {
		dir := s.dir["shop-1"][stage]
		all, err := Expiries(dir)
		if err != nil || len(all) != 14 {
			t.Errorf("%s: %d certificates, %v; want 5 authorities and 9 leaves", stage, len(all), err)
		}
		for _, e := range all {
			p, err := load(PairFile(dir, e.Name))
			if err != nil {
				t.Fatal(err)
			}
			if !e.NotAfter.Equal(p.cert.NotAfter) || e.Authority != p.cert.IsCA {
				t.Errorf("%s: %s ends at %v; want %v", stage, e.Name, e.NotAfter, p.cert.NotAfter)
			}
		}
	}
}
