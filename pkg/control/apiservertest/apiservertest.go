// Package apiservertest runs a real apiserver with its etcd for tests of what talks to one: its admission, authorization
// and finalizers are what such code depends on. The feature gates of Kubernetes are global: one runs at a time.
package apiservertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
)

// User is who may ask the apiserver. The name is the token as well.
type User struct {
	Name   string
	Groups []string
}

// Admin may do everything.
const Admin = "admin"

// startLimit is how long an apiserver may take to be ready on a busy machine.
const startLimit = 2 * time.Minute

// Server is a running apiserver.
type Server struct{ url string }

// Start runs an apiserver with the admission and authorization of a cluster until the test ends. It knows Admin and
// the users.
func Start(t testing.TB, users ...User) *Server {
	t.Helper()
	dir := t.TempDir()
	etcd := etcdtest.Start(t, filepath.Join(dir, "etcd"), nil)
	port := freePort(t)
	s := &Server{url: fmt.Sprintf("https://127.0.0.1:%d", port)}
	args := []string{
		"--etcd-servers=http://" + etcd.Clients[0].Addr().String(),
		"--bind-address=127.0.0.1", "--advertise-address=192.0.2.250", fmt.Sprintf("--secure-port=%d", port), "--cert-dir=" + dir,
		"--token-auth-file=" + writeTokens(t, dir, users),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=10.43.0.0/16", "--service-account-issuer=https://cairn.test",
		"--service-account-signing-key-file=" + writeKey(t, dir), "--service-account-key-file=" + filepath.Join(dir, "sa.key"),
	}
	o := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("apiserver", pflag.ContinueOnError)
	for _, f := range o.Flags().FlagSets {
		flags.AddFlagSet(f)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("apiserver: %v", err)
			}
		case <-time.After(20 * time.Second): // The end of the process stops it.
		}
	})
	s.await(t, done)
	return s
}

func run(ctx context.Context, o *options.ServerRunOptions) error {
	completed, err := o.Complete(ctx)
	if err != nil {
		return err
	}
	return apiserver.Run(ctx, completed)
}

// Config returns the configuration of a client that asks as that user.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{
		Host: s.url, BearerToken: user, QPS: 500, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, // it has made its certificate itself
	}
}

// Client asks as that user.
func (s *Server) Client(t testing.TB, user string) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(s.Config(user))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *Server) await(t testing.TB, done <-chan error) {
	t.Helper()
	client := s.Client(t, Admin)
	late := time.After(startLimit)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		text, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case err := <-done:
			t.Fatalf("apiserver ended: %v", err)
		case <-late:
			t.Fatalf("apiserver is not ready after %v: %v %s", startLimit, err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func writeTokens(t testing.TB, dir string, users []User) string {
	t.Helper()
	text := ""
	for _, u := range append(users, User{Admin, []string{"system:masters"}}) {
		groups := ""
		for i, g := range u.Groups {
			if i > 0 {
				groups += ","
			}
			groups += g
		}
		text += fmt.Sprintf("%s,%s,%s,%q\n", u.Name, u.Name, u.Name, groups)
	}
	return writeFile(t, filepath.Join(dir, "tokens"), []byte(text))
}

func writeKey(t testing.TB, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(dir, "sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func writeFile(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
