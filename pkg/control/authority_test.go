package control

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// asking is a server that asks another one, at that address, for its authority. The other one has the files in theirs.
func asking(t *testing.T, address string) (r *rotators, theirs pki.Options) {
	t.Helper()
	o := Options{Node: "a", DataDir: t.TempDir()}
	ours := pki.Options{Dir: o.tls(), Node: "a"}
	if _, err := pki.EnsureAuthorities(ours); err != nil {
		t.Fatal(err)
	}
	theirs = pki.Options{Dir: t.TempDir(), Node: "b"}
	if err := os.CopyFS(theirs.Dir, os.DirFS(ours.Dir)); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != join.CAPath {
			http.NotFound(w, r)
			return
		}
		http.ServeFile(w, r, pki.CertFile(theirs.Dir, pki.ServerCA))
	}))
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Skip("cannot listen: ", err)
	}
	_ = s.Listener.Close() // its own choice
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	o.Port = l.Addr().(*net.TCPAddr).Port
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}} // whom to believe is tested elsewhere
	return &rotators{options: o, client: fake.NewClientset(), config: config, log: slog.New(slog.DiscardHandler), now: time.Now}, theirs
}

func recordOf(addresses ...string) join.NodeRecord {
	n := join.NodeRecord{Name: "b", Role: membership.Server}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	return n
}

// TestSameAuthority lets a replacement begin when both servers sign with one authority, whatever they trust besides.
func TestSameAuthority(t *testing.T) {
	r, theirs := asking(t, "127.0.0.1")
	present := func(want string) {
		t.Helper()
		err := r.present(t.Context(), recordOf("127.0.0.1"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("present = %v; want %q", err, want)
		}
	}
	present("")
	ours := pki.Options{Dir: r.options.tls(), Node: "a"}
	all, err := pki.Successors(ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Trust(ours, all); err != nil { // and the replacement was given up
		t.Fatal(err)
	}
	present("")
	replace := func(dir string) {
		t.Helper()
		for _, name := range pki.Authorities() {
			for _, file := range []string{pki.PairFile(dir, name), pki.CertFile(dir, name)} {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		}
		later := func() time.Time { return time.Now().Add(time.Hour) }
		if _, err := pki.EnsureAuthorities(pki.Options{Dir: dir, Node: "b", Now: later}); err != nil {
			t.Fatal(err)
		}
	}
	replace(theirs.Dir)
	present("this server's is the older one: remove the servers")
	if err := os.RemoveAll(theirs.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(theirs.Dir, os.DirFS(ours.Dir)); err != nil {
		t.Fatal(err)
	}
	replace(ours.Dir)
	present("its is the older one")
	if err := os.WriteFile(pki.CertFile(theirs.Dir, pki.ServerCA), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	present("its authority of servers")
	if err := r.present(t.Context(), recordOf()); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("present = %v; want that no address is known", err)
	}
}

// TestPresentByAnyAddress does not wait for an address that nothing answers on.
func TestPresentByAnyAddress(t *testing.T) {
	r, _ := asking(t, "127.0.0.2")
	silent, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(r.options.Port)))
	if err != nil {
		t.Skip("cannot listen: ", err)
	}
	defer silent.Close()
	begin := time.Now()
	if err := r.present(t.Context(), recordOf("127.0.0.1", "127.0.0.2", "127.0.0.3")); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > serverTime/2 {
		t.Errorf("took %s; want no wait for the first address", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.present(ctx, recordOf("127.0.0.1", "127.0.0.3")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("present = %v; want what was heard first", err)
	}
}
