package kubeconfig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"

	"github.com/cairn-os/cairn/pkg/pki"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Ensure(pki.Options{Dir: dir, Node: "n", ServiceIP: netip.MustParseAddr("10.43.0.1")}); err != nil {
		t.Fatal(err)
	}
	c := Client{
		Server: "https://127.0.0.1:6443", CAFile: pki.CertFile(dir, pki.ServerCA), PairFile: pki.PairFile(dir, pki.Admin), User: "admin",
	}
	for name, write := range map[string]func(string) error{"reference": c.WriteReference, "embedded": c.WriteEmbedded} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "out", name)
			if err := write(path); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("mode = %v; want 0600: it holds a key", info.Mode().Perm())
			}
			cfg, err := clientcmd.BuildConfigFromFlags("", path)
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Host != c.Server {
				t.Errorf("host = %q; want %q", cfg.Host, c.Server)
			}
			if _, err := rest.TLSConfigFor(cfg); err != nil {
				t.Errorf("unusable: %v", err)
			}
		})
	}
}

func TestWriteEmbeddedWithoutKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(file, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Client{Server: "https://127.0.0.1:6443", CAFile: file, PairFile: file, User: "admin"}
	if err := c.WriteEmbedded(filepath.Join(dir, "kubeconfig")); err == nil {
		t.Error("WriteEmbedded accepted a file without a certificate")
	}
}

func TestBytes(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.EnsureAuthorities(pki.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(pki.CertFile(dir, pki.ServerCA))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := pki.Sign(dir, pki.ClientCA, key.Public(), pki.ClientRequest("ada", "shop:operators"))
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	good := Embedded{Server: "https://shop.example.com:6443", User: "ada", CA: ca, Cert: signed, Key: keyPEM}
	data, err := good.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host != good.Server || string(cfg.CAData) != string(ca) || string(cfg.KeyData) != string(keyPEM) {
		t.Errorf("host %q, or another authority or key than given", cfg.Host)
	}
	if _, err := rest.TLSConfigFor(cfg); err != nil {
		t.Errorf("unusable: %v", err)
	}
	for name, change := range map[string]func(*Embedded){
		"no server":     func(e *Embedded) { e.Server = "" },
		"not a URL":     func(e *Embedded) { e.Server = "192.0.2.1:6443" },
		"no TLS":        func(e *Embedded) { e.Server = "http://192.0.2.1:6443" },
		"no authority":  func(e *Embedded) { e.CA = nil },
		"no key":        func(e *Embedded) { e.Key = nil },
		"another's key": func(e *Embedded) { e.Cert = ca },
	} {
		e := good
		change(&e)
		if data, err := e.Bytes(); err == nil {
			t.Errorf("%s: accepted as %s", name, data)
		}
	}
}
