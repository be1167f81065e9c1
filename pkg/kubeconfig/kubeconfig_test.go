package kubeconfig

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

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
