package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/store/peer"
)

// stages are those that a machine goes through; off is one that was switched off before the first and is met later.
var stages = []string{"old", "trust", "sign", "retire"}

// bring does one stage's work.
func bring(o Options, stage string, all []Successor) (bool, error) {
	switch stage {
	case "trust":
		return Trust(o, all)
	case "sign":
		return Succeed(o, all)
	case "retire":
		return Retire(o, all)
	}
	return false, nil
}

// shop is a cluster of two servers whose machines are at any stage of a rotation.
type shop struct {
	all []Successor
	dir map[string]map[string]string // by node and stage
}

// clone copies a machine's files.
func clone(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), content(t, filepath.Join(from, e.Name())), info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func at(dir, node string) Options {
	o := options(dir, built.Add(time.Hour))
	o.Node, o.Joined = node, node != "shop-1"
	o.Write = os.WriteFile // thousands of them need not come to the disk
	return o
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{dir: map[string]map[string]string{"shop-1": {}, "shop-2": {}}}
	first := at(t.TempDir(), "shop-1")
	ensure(t, first)
	second := at(clone(t, first.Dir), "shop-2")
	ensure(t, second)
	var err error
	if s.all, err = Successors(first); err != nil {
		t.Fatal(err)
	}
	if again := ensure(t, first); len(again) > 0 {
		t.Errorf("Ensure after Successors wrote %v; want that nothing had changed", again)
	}
	for _, o := range []Options{first, second} {
		s.dir[o.Node]["old"] = o.Dir
		for i, stage := range stages[1:] {
			next := o
			next.Dir = clone(t, s.dir[o.Node][stages[i]])
			for _, want := range []bool{true, false} {
				if changed, err := bring(next, stage, s.all); err != nil || changed != want {
					t.Fatalf("%s at %s: changed %v, %v; want %v", o.Node, stage, changed, err, want)
				}
			}
			if again := ensure(t, next); len(again) > 0 {
				t.Errorf("Ensure at %s wrote %v; want nothing", stage, again)
			}
			s.dir[o.Node][stage] = next.Dir
		}
	}
	return s
}

// way is how one part of a machine speaks to another's.
type way struct {
	server, serverCA string
	client, clientCA string
	name             string
}

// ways are all in which a certificate is shown.
func ways(server string) []way {
	return []way{
		{APIServer, ServerCA, KubeletClient, ClientCA, "kubernetes"},
		{APIServer, ServerCA, ControllerManager, ClientCA, "kubernetes"},
		{APIServer, ServerCA, FrontProxy, RequestHeaderCA, "kubernetes"},
		{KubeletServer, KubeletCA, APIServerKubeletClient, ClientCA, server},
		{Store, StoreCA, Store, StoreCA, peer.ServerName},
	}
}

// talk makes the client's machine speak to the server's, each with the files that it has. Without mutual the client shows
// no certificate.
func (w way) talk(client, server string, now time.Time, mutual bool) error {
	pool := func(dir, name string) (*x509.CertPool, error) {
		data, err := os.ReadFile(CertFile(dir, name))
		if err != nil {
			return nil, err
		}
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: no certificate", name)
		}
		return p, nil
	}
	pair := func(dir, name string) (tls.Certificate, error) {
		return tls.LoadX509KeyPair(PairFile(dir, name), PairFile(dir, name))
	}
	clock := func() time.Time { return now }
	sc := &tls.Config{Time: clock, SessionTicketsDisabled: true}
	cc := &tls.Config{Time: clock, ServerName: w.name}
	own, err := pair(server, w.server)
	if err != nil {
		return err
	}
	sc.Certificates = []tls.Certificate{own}
	if cc.RootCAs, err = pool(client, w.serverCA); err != nil {
		return err
	}
	if mutual {
		sc.ClientAuth = tls.RequireAndVerifyClientCert
		if sc.ClientCAs, err = pool(server, w.clientCA); err != nil {
			return err
		}
		if own, err = pair(client, w.client); err != nil {
			return err
		}
		cc.Certificates = []tls.Certificate{own}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served := make(chan error, 1)
	go func() {
		c := tls.Server(a, sc)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		served <- err
		a.Close()
	}()
	c := tls.Client(b, cc)
	err = c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // tells what the server thinks of the certificate
	}
	b.Close()
	return errors.Join(err, <-served)
}

// believe checks that two machines speak to each other in all ways and both directions.
func believe(t *testing.T, what string, a, b Options, now time.Time) {
	t.Helper()
	for _, d := range [][2]Options{{a, b}, {b, a}} {
		for _, w := range ways(d[1].Node) {
			if err := w.talk(d[0].Dir, d[1].Dir, now, true); err != nil {
				t.Errorf("%s: %s of %s asks %s of %s: %v", what, w.client, d[0].Node, w.server, d[1].Node, err)
			}
		}
	}
}

// TestRotationWithoutOutage lets machines in any two stages that can meet speak to each other.
func TestRotationWithoutOutage(t *testing.T) {
	s := newShop(t)
	now := built.Add(time.Hour)
	for i, stage := range stages {
		a := at(s.dir["shop-1"][stage], "shop-1")
		complete(t, a, stage, s.all)
		for _, next := range stages[i:min(i+2, len(stages))] {
			believe(t, stage+" and "+next, a, at(s.dir["shop-2"][next], "shop-2"), now)
			believe(t, next+" and "+stage, at(s.dir["shop-1"][next], "shop-1"), at(s.dir["shop-2"][stage], "shop-2"), now)
		}
	}
	off := s.dir["shop-2"]["old"]
	for _, stage := range stages {
		for _, w := range ways("shop-1") {
			if err := w.talk(off, s.dir["shop-1"][stage], now, false); err != nil {
				t.Errorf("a machine that was off meets %s at %s: %v", w.server, stage, err)
			}
		}
	}
	// Until the old authority ends: the cross certificate does, too.
	if err := ways("")[0].talk(off, s.dir["shop-1"]["retire"], built.Add(authorityLife+2*time.Hour), false); err == nil {
		t.Error("the cross certificate outlives the authority that signed it")
	}
}

// complete checks a machine's files against what the stage is to leave.
func complete(t *testing.T, o Options, stage string, all []Successor) {
	t.Helper()
	for _, s := range all {
		heir, err := s.parse()
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := cert.CertsFromFile(CertFile(o.Dir, s.Name))
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := load(PairFile(o.Dir, s.Name))
		if err != nil {
			t.Fatal(err)
		}
		succeeded := issuer.cert.Equal(heir.cert)
		count := map[string]int{"old": 1, "trust": 2, "sign": 2, "retire": 1}[stage]
		if len(bundle) != count || !bundle[0].Equal(issuer.cert) || succeeded != (stage == "sign" || stage == "retire") || stage == "trust" && !bundle[1].Equal(heir.cert) {
			t.Errorf("%s: %s has %d certificates, first signs %v, successor signs %v", stage, s.Name, len(bundle), bundle[0].Equal(issuer.cert), succeeded)
		}
		for _, c := range bundle {
			if err := c.CheckSignatureFrom(c); err != nil {
				t.Errorf("%s: %s trusts %v, which is no root: %v", stage, s.Name, c.Subject, err)
			}
		}
		if certs, err := cert.CertsFromFile(PairFile(o.Dir, s.Name)); err != nil || len(certs) != 1 {
			t.Errorf("%s: %s.pem holds %d certificates, %v; kube-controller-manager wants 1", stage, s.Name, len(certs), err)
		}
		if cross := crossOf(o.Dir, s.Name, heir.cert); (len(cross) > 0) != succeeded {
			t.Errorf("%s: %s: cross certificate %v", stage, s.Name, cross)
		}
	}
	for _, l := range leaves(o.withDefaults()) {
		issuer, err := loadIssuer(o.Dir, l.authority)
		if err != nil {
			t.Fatal(err)
		}
		if have, err := load(PairFile(o.Dir, l.name)); err != nil || !have.follows(issuer.chain) || !l.serves(have.cert, issuer.cert, o.clock()) {
			t.Errorf("%s: %s is not by the authority that signs: %v", stage, l.name, err)
		}
	}
	if outdated, err := Outdated(o.Dir, all); err != nil || outdated {
		t.Errorf("%s: Outdated = %v, %v", stage, outdated, err)
	}
	modes(t, o.Dir)
}

func modes(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o600)
		if ext := filepath.Ext(e.Name()); ext == ".crt" || ext == ".cross" {
			want = 0o644
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v; want %v", e.Name(), info.Mode().Perm(), want)
		}
	}
}

// TestRotationPowerCuts cuts the power at each write of each stage. As they are and after the boot, the files let the machine
// speak to another one that is at this stage or still at the one before; when the stage is done again they are complete.
func TestRotationPowerCuts(t *testing.T) {
	s := newShop(t)
	now := built.Add(time.Hour)
	for i, stage := range stages[1:] {
		before := stages[i]
		others := []Options{at(s.dir["shop-2"][before], "shop-2"), at(s.dir["shop-2"][stage], "shop-2")}
		check := func(what string, o Options) {
			t.Helper()
			for _, other := range others {
				believe(t, what, o, other, now)
			}
		}
		cuts := 0
		for n := 0; ; n++ {
			o := at(clone(t, s.dir["shop-1"][before]), "shop-1")
			broken := o
			left := n // a cut after a write leaves what the one before the next does
			broken.Write = func(path string, data []byte, mode fs.FileMode) error {
				if left--; left < 0 {
					return errCut
				}
				return os.WriteFile(path, data, mode)
			}
			_, err := bring(broken, stage, s.all)
			if err == nil {
				break
			}
			if !errors.Is(err, errCut) {
				t.Fatalf("%s, cut %d: %v", stage, n, err)
			}
			cuts++
			check(fmt.Sprintf("%s, cut %d", stage, n), o)
			ensure(t, o)
			check(fmt.Sprintf("%s, cut %d, after the boot", stage, n), o)
			if _, err := bring(o, stage, s.all); err != nil {
				t.Fatalf("%s, cut %d, again: %v", stage, n, err)
			}
			complete(t, o, stage, s.all) // TestRotationWithoutOutage has machines like that speak
		}
		if want := map[string]int{"trust": 5, "sign": 24, "retire": 5}[stage]; cuts != want {
			t.Errorf("%s: %d cuts; want %d: one at each write", stage, cuts, want)
		}
	}
}

// TestStagesCatchUp brings a machine to a later stage that missed the ones before, and never back.
func TestStagesCatchUp(t *testing.T) {
	s := newShop(t)
	for i, from := range stages {
		for j, to := range stages[1:] {
			o := at(clone(t, s.dir["shop-1"][from]), "shop-1")
			changed, err := bring(o, to, s.all)
			if err != nil {
				t.Fatal(err)
			}
			if back := i >= j+1; changed == back {
				t.Errorf("%s after %s: changed %v", to, from, changed)
			}
			complete(t, o, stages[max(i, j+1)], s.all)
		}
	}
}

// TestSecondRotation replaces the authorities twice, also with a clock that went back, and refuses the first successors then.
func TestSecondRotation(t *testing.T) {
	s := newShop(t)
	o := at(clone(t, s.dir["shop-1"]["retire"]), "shop-1")
	o.Now = func() time.Time { return built.Add(-time.Hour) } // behind the floor: the same second as before
	second, err := Successors(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range stages[1:] {
		if changed, err := bring(o, stage, second); err != nil || !changed {
			t.Fatalf("%s: changed %v, %v", stage, changed, err)
		}
		complete(t, o, stage, second)
	}
	for i := range second {
		a, err := s.all[i].parse()
		if err != nil {
			t.Fatal(err)
		}
		b, err := second[i].parse()
		if err != nil {
			t.Fatal(err)
		}
		if !b.cert.NotAfter.After(a.cert.NotAfter) || bytes.Equal(a.cert.RawSubject, b.cert.RawSubject) {
			t.Errorf("%s: the second successor ends at %v as %v, the first at %v as %v", b.name, b.cert.NotAfter, b.cert.Subject, a.cert.NotAfter, a.cert.Subject)
		}
		if !b.chain[0].NotAfter.Equal(a.cert.NotAfter) || b.chain[0].CheckSignatureFrom(a.cert) != nil {
			t.Errorf("%s: the cross certificate ends at %v; want it by the authority before, and its end", b.name, b.chain[0].NotAfter)
		}
	}
	if outdated, err := Outdated(o.Dir, s.all); err != nil || !outdated {
		t.Errorf("Outdated(the first successors) = %v, %v; want that they are", outdated, err)
	}
	before := snapshot(t, o.Dir)
	for _, stage := range stages[1:] {
		if _, err := bring(o, stage, s.all); !errors.Is(err, ErrOutdated) {
			t.Errorf("%s with the first successors = %v; want ErrOutdated", stage, err)
		}
	}
	if after := snapshot(t, o.Dir); after != before {
		t.Error("outdated successors changed files")
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, e := range entries {
		text += e.Name() + string(content(t, filepath.Join(dir, e.Name())))
	}
	return text
}

// TestBadSuccessors refuses what is not whole before it writes anything.
func TestBadSuccessors(t *testing.T) {
	s := newShop(t)
	foreign := at(t.TempDir(), "shop-1")
	ensure(t, foreign)
	others, err := Successors(foreign)
	if err != nil {
		t.Fatal(err)
	}
	last := len(s.all) - 1
	change := func(edit func(*Successor)) []Successor {
		all := slices.Clone(s.all)
		edit(&all[last])
		return all
	}
	leaf := content(t, PairFile(foreign.Dir, APIServer))
	for name, all := range map[string][]Successor{
		"none":            nil,
		"unknown name":    change(func(s *Successor) { s.Name = "nobody" }),
		"twice":           change(func(s2 *Successor) { *s2 = s.all[0] }),
		"no certificate":  change(func(s *Successor) { s.Certificate = nil }),
		"no cross":        change(func(s *Successor) { s.Cross = nil }),
		"no key":          change(func(s *Successor) { s.Key = nil }),
		"another's key":   change(func(s *Successor) { s.Key = others[last].Key }),
		"another's cross": change(func(s *Successor) { s.Cross = others[last].Cross }),
		"a leaf":          change(func(s *Successor) { s.Certificate, s.Key = leaf, leaf }),
		"another cluster": others,
	} {
		o := at(clone(t, s.dir["shop-1"]["old"]), "shop-1")
		before := snapshot(t, o.Dir)
		for _, stage := range stages[1:] {
			if changed, err := bring(o, stage, all); err == nil || changed {
				t.Errorf("%s: %s = %v, %v; want an error", name, stage, changed, err)
			}
		}
		if snapshot(t, o.Dir) != before {
			t.Errorf("%s: files changed", name)
		}
	}
	data, err := json.Marshal(s.all)
	if err != nil {
		t.Fatal(err)
	}
	var back []Successor
	if err := json.Unmarshal(data, &back); err != nil || len(back) != 5 {
		t.Fatalf("%d successors come back, %v", len(back), err)
	}
	o := at(clone(t, s.dir["shop-1"]["old"]), "shop-1")
	if _, err := Succeed(o, back); err != nil {
		t.Error(err)
	}
	complete(t, o, "sign", s.all)
}
