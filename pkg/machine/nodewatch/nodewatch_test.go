package nodewatch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/status"
)

// apiserver answers list and watch of nodes as the real one does: watch events come from the channel.
type apiserver struct {
	list   string
	events chan string
}

func (a *apiserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v1/nodes" || r.FormValue("fieldSelector") != "metadata.name=till-1" {
		http.NotFound(w, r)
		return
	}
	if len(r.TLS.PeerCertificates) != 1 || r.TLS.PeerCertificates[0].Subject.CommonName != "admin" {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	if r.FormValue("watch") == "" {
		fmt.Fprintf(w, `{"kind":"NodeList","metadata":{"resourceVersion":"7"},"items":[%s]}`, a.list)
		return
	}
	if r.FormValue("resourceVersion") != "7" {
		http.Error(w, "wrong version", http.StatusGone)
		return
	}
	w.(http.Flusher).Flush()
	for {
		select {
		case ev, ok := <-a.events:
			if !ok {
				return
			}
			fmt.Fprintln(w, ev)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func object(ready, reason string) string {
	return fmt.Sprintf(`{"kind":"Node","metadata":{"name":"till-1"},"status":{"conditions":[
		{"type":"MemoryPressure","status":"False"},
		{"type":"Ready","status":%q,"reason":%q,"message":"words","lastHeartbeatTime":"2026-11-20T14:00:00Z"}],
		"nodeInfo":{"bootID":"b-1","kubeletVersion":"v1.36.4"}}}`, ready, reason)
}

func seen(ready bool, reason string) Observation {
	return Observation{
		Node: status.Node{Name: "till-1", Ready: ready, Reason: reason, Message: "words", Version: "v1.36.4"},
		Seen: true, BootID: "b-1", Heartbeat: time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC),
	}
}

func TestWatch(t *testing.T) {
	api := &apiserver{list: object("False", "KubeletNotReady"), events: make(chan string)}
	srv := httptest.NewUnstartedServer(api)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()

	path := filepath.Join(t.TempDir(), "kubeconfig")
	got := make(chan Observation, 16)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, Options{Kubeconfig: path, Node: "till-1", Update: func(o Observation) { got <- o }})
	}()
	expect := func(want Observation) {
		t.Helper()
		select {
		case o := <-got:
			if o.Node.Reason == ReasonUnreachable || o.Node.Reason == ReasonNoKubeconfig {
				t.Logf("outage: %s", o.Node.Message)
				o.Node.Message = ""
			}
			if diff := cmp.Diff(want, o); diff != "" {
				t.Fatalf("observed (-want +got):\n%s", diff)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing observed; want %+v", want)
		}
	}
	expect(Observation{Node: status.Node{Name: "till-1", Reason: ReasonNoKubeconfig}})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(path, kubeconfigFor(t, srv.URL, ca), 0o600); err != nil {
		t.Fatal(err)
	}
	for o := range got { // the file may have been missing for a second look
		if o.Seen {
			if diff := cmp.Diff(seen(false, "KubeletNotReady"), o); diff != "" {
				t.Fatalf("observed (-want +got):\n%s", diff)
			}
			break
		}
	}
	api.events <- `{"type":"MODIFIED","object":` + object("True", "KubeletReady") + `}`
	expect(seen(true, "KubeletReady"))
	api.events <- `{"type":"DELETED","object":` + object("True", "KubeletReady") + `}`
	expect(missing("till-1"))
	api.events <- `{"type":`
	srv.CloseClientConnections()
	expect(Observation{Node: status.Node{Name: "till-1", Reason: ReasonUnreachable}})
	expect(seen(false, "KubeletNotReady"))
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("Watch did not heed its context")
	}
}

func kubeconfigFor(t *testing.T, server string, ca []byte) []byte {
	t.Helper()
	certPEM, keyPEM := clientPair(t, "admin")
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: other, context: {cluster: none, user: none}}
- {name: here, context: {cluster: local, user: admin}}
clusters:
- {name: local, cluster: {server: %q, certificate-authority-data: %s}}
users:
- {name: admin, user: {client-certificate-data: %s, client-key-data: %s}}
`, server, base64.StdEncoding.EncodeToString(ca), base64.StdEncoding.EncodeToString(certPEM), base64.StdEncoding.EncodeToString(keyPEM))
}

func clientPair(t *testing.T, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// TestRenewedFiles: a kubelet's kubeconfig refers to files, which are replaced when the certificate is renewed.
func TestRenewedFiles(t *testing.T) {
	asked := make(chan string, 64)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("watch") == "" {
			asked <- r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprint(w, `{"metadata":{"resourceVersion":"7"},"items":[]}`) // and the end of any watch
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair := func(name string) []byte { // one file, as pki writes it
		cert, key := clientPair(t, name)
		return append(cert, key...)
	}
	write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	write("client.pem", pair("first"))
	write("kubeconfig", fmt.Appendf(nil, `current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: u, user: {client-certificate: %s/client.pem, client-key: client.pem}}]
`, srv.URL, dir))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, Options{Kubeconfig: filepath.Join(dir, "kubeconfig"), Node: "till-1", Update: func(Observation) {}})
	}()
	defer func() { cancel(); <-ended }()
	for _, want := range []string{"first", "second"} {
		for deadline := time.After(20 * time.Second); ; {
			select {
			case name := <-asked:
				if name != want {
					continue
				}
			case <-deadline:
				t.Fatalf("%s was never seen", want)
			}
			break
		}
		write("client.pem", pair("second"))
	}
}

func TestBadKubeconfig(t *testing.T) {
	good := string(kubeconfigFor(t, "https://127.0.0.1:6443", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})))
	for name, tt := range map[string]struct{ text, want string }{
		"junk":       {"\x00\x01", "parse"},
		"empty":      {"", `context "" is not complete`},
		"no context": {strings.Replace(good, "current-context: here", "current-context: gone", 1), `context "gone" is not complete`},
		"http":       {strings.Replace(good, "https://", "http://", 1), "is no https URL"},
		"bad ca":     {good, "no certificate in it"},
	} {
		if _, err := parseKubeconfig([]byte(tt.text), "."); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: parseKubeconfig() = %v; want %q", name, err, tt.want)
		}
	}
}
