package pki

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

var built = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

func options(dir string, now time.Time) Options {
	return Options{
		Dir: dir, Node: "shop-1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")},
		ServiceIP: netip.MustParseAddr("10.43.0.1"), Floor: built, Now: func() time.Time { return now },
	}
}

func ensure(t *testing.T, o Options) []string {
	t.Helper()
	written, err := Ensure(o)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

// verify checks each leaf's chain at the given time.
func verify(t *testing.T, o Options, at time.Time) {
	t.Helper()
	for _, l := range leaves(o.withDefaults()) {
		p, err := load(PairFile(o.Dir, l.name))
		if err != nil {
			t.Fatal(err)
		}
		ca, err := load(PairFile(o.Dir, l.authority))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		for _, usage := range l.Usages {
			if _, err := p.cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("%s at %v: %v", l.name, at, err)
			}
		}
	}
}

func TestEnsureIsIdempotent(t *testing.T) {
	o := options(t.TempDir(), built.Add(time.Hour))
	if n := len(ensure(t, o)); n != 20 {
		t.Errorf("first Ensure wrote %d files; want 5 authorities twice, a key and 9 leaves", n)
	}
	if again := ensure(t, o); len(again) > 0 {
		t.Errorf("second Ensure wrote %v; want nothing", again)
	}
	verify(t, o, built)
	api, err := load(PairFile(o.Dir, APIServer))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "10.43.0.1", "192.0.2.7", "shop-1", "kubernetes.default.svc"} {
		if err := api.cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o600)
		if filepath.Ext(e.Name()) == ".crt" {
			want = 0o644
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v; want %v", e.Name(), info.Mode().Perm(), want)
		}
	}
}

// TestPowerCuts cuts the power at each write, before and after it took effect, and lets the next boot complete: while the
// files are created, and while an older release's or a shorter life's are renewed.
func TestPowerCuts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes int
		start  func(Options) // brings the files to where the cut one begins
	}{
		{"creation", 20, func(Options) {}},
		{"renewal", 7, func(o Options) {
			o.Now = func() time.Time { return built.AddDate(-1, 0, 0) }
			o.Floor = time.Time{}
			ensure(t, o)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := range 2 * tt.writes {
				o := options(t.TempDir(), built)
				tt.start(o)
				o.Write = cutAfter(n/2, n%2 == 1)
				if _, err := Ensure(o); !errors.Is(err, errCut) {
					t.Fatalf("cut %d: Ensure = %v; want the cut", n, err)
				}
				o.Write = nil
				ensure(t, o)
				verify(t, o, built)
			}
		})
	}
}

var errCut = errors.New("power cut")

// cutAfter writes so many files, then fails: once the next is written as well, or before.
func cutAfter(left int, written bool) func(string, []byte, fs.FileMode) error {
	return func(name string, data []byte, m fs.FileMode) error {
		if left == 0 && !written {
			return errCut
		}
		if err := atomicfile.Write(name, data, m); err != nil {
			return err
		}
		if left == 0 {
			return errCut
		}
		left--
		return nil
	}
}

func TestRenewal(t *testing.T) {
	// All but the two that live as long as their authority.
	all := []string{
		"apiserver.pem", "kubelet-server.pem", "kubelet-client.pem", "controller-manager.pem", "scheduler.pem", "admin.pem", "store.pem",
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name   string
		change func(*Options)
		want   []string
	}{
		{"two thirds left", func(o *Options) { o.Now = func() time.Time { return built.Add(120 * day) } }, nil},
		{"less than a third left", func(o *Options) { o.Now = func() time.Time { return built.Add(250 * day) } }, all},
		{"off for two years", func(o *Options) { o.Now = func() time.Time { return built.Add(730 * day) } }, all},
		{"new address", func(o *Options) { o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.8")} }, all[:2]},
		{"new name", func(o *Options) { o.SANs = []string{"api.example.com", "198.51.100.1"} }, all[:1]},
		{"new node", func(o *Options) { o.Node = "shop-2" }, append(slices.Clone(all[:3]), "store.pem")},
		{"new domain", func(o *Options) { o.ClusterDomain = "shop.internal" }, all[:1]},
		{"life cut", func(o *Options) { o.Life = 5 * time.Minute }, all},
		{"life halved", func(o *Options) { o.Life = leafLife / 2 }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t.TempDir(), built)
			ensure(t, o)
			tt.change(&o)
			if got := ensure(t, o); !slices.Equal(got, tt.want) {
				t.Errorf("Ensure wrote %v; want %v", got, tt.want)
			}
			verify(t, o, o.Now())
		})
	}
}

// TestLastMonthsOfAnAuthority creates leaves that cannot last a third of their usual life: they are not created again
// every time.
func TestLastMonthsOfAnAuthority(t *testing.T) {
	o := options(t.TempDir(), built)
	ensure(t, o)
	late := options(o.Dir, built.Add(authorityLife-60*24*time.Hour))
	if n := len(ensure(t, late)); n != 7 {
		t.Errorf("Ensure wrote %d files; want 7 leaves", n)
	}
	if again := ensure(t, late); len(again) > 0 {
		t.Errorf("second Ensure wrote %v; want nothing", again)
	}
}

func TestWrongClocks(t *testing.T) {
	for _, clock := range []time.Time{time.Unix(0, 0), built, built.AddDate(20, 0, 0)} {
		o := options(t.TempDir(), clock)
		ensure(t, o)
		verify(t, o, built.Add(time.Hour)) // the clock was put right
		o.Now = func() time.Time { return built.Add(time.Hour) }
		ensure(t, o)
		verify(t, o, built.Add(time.Hour))
	}
}

func TestDamage(t *testing.T) {
	o := options(t.TempDir(), built)
	ensure(t, o)
	if err := os.WriteFile(PairFile(o.Dir, Scheduler), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ensure(t, o); !slices.Equal(got, []string{"scheduler.pem"}) {
		t.Errorf("Ensure wrote %v; want the damaged leaf alone", got)
	}
	if err := os.WriteFile(PairFile(o.Dir, ClientCA), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(o); err == nil {
		t.Error("Ensure replaced a damaged authority; want an error")
	}
}

func TestEnsureEncryption(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server", "encryption.yaml")
	if err := CheckEncryption(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckEncryption = %v; want that it lacks", err)
	}
	if err := EnsureEncryption(path, built); err != nil {
		t.Fatal(err)
	}
	if err := CheckEncryption(path); err != nil {
		t.Error(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureEncryption(path, built); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(path); err != nil || string(second) != string(first) {
		t.Errorf("second EnsureEncryption changed the key: %v", err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := EnsureEncryption(path, built); err == nil {
		t.Error("EnsureEncryption replaced a lost key; want an error")
	}
	if err := CheckEncryption(path); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckEncryption = %v; want that the file is empty", err)
	}
}
