package join

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

// TestWire looks at what an eavesdropper would see, and repeats it.
func TestWire(t *testing.T) {
	c := newCluster(t)
	var bodies [][]byte
	tap := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path == JoinPath {
			bodies = append(bodies, data)
		}
		r.Body = io.NopCloser(strings.NewReader(string(data)))
		c.server.Handler().ServeHTTP(w, r)
	}), c.dir+"/server/tls")
	o, _ := c.machine(membership.Server, "s", plainSecret)
	o.ServerURL = tap.URL
	mustRun(t, o)
	if len(bodies) != 1 || strings.Contains(string(bodies[0]), plainSecret) || strings.Contains(string(bodies[0]), "192.0.2.77") {
		t.Fatalf("bodies %q", bodies)
	}
	post := func(body []byte) (int, []byte) {
		q := httptest.NewRequest(http.MethodPost, JoinPath, strings.NewReader(string(body)))
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, q)
		return w.Code, w.Body.Bytes()
	}
	code, data := post(bodies[0])
	var r reply
	if err := json.Unmarshal(data, &r); err != nil || code != http.StatusOK {
		t.Fatalf("replay: %d %s", code, data)
	}
	if strings.Contains(string(data), "CERTIFICATE") || strings.Contains(string(r.Sealed), "CERTIFICATE") {
		t.Error("the answer can be read without the secret")
	}
	var e envelope
	if err := json.Unmarshal(bodies[0], &e); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(e.Sealed); i += 97 { // any bit changed
		changed := e
		changed.Sealed = append([]byte(nil), e.Sealed...)
		changed.Sealed[i] ^= 1
		body, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := post(body); code != http.StatusUnauthorized {
			t.Errorf("byte %d changed: %d; want 401", i, code)
		}
		c.advance(5 * time.Second) // gives back to the limiter
	}
	// Later than the clocks may differ, a repetition changes nothing either.
	c.advance(maxSkew + time.Second)
	if err := Forget(t.Context(), c.client, "s"); err != nil {
		t.Fatal(err)
	}
	if code, _ := post(bodies[0]); code != http.StatusOK {
		t.Errorf("late replay: %d", code)
	}
	if got, err := getRecord(t.Context(), c.client, "s"); err != nil || got != nil {
		t.Errorf("a late replay took the name: %v, %v", got, err)
	}
}

// TestManInTheMiddle passes requests on to the real server, but shows a CA of its own.
func TestManInTheMiddle(t *testing.T) {
	c, mallory := newCluster(t), newCluster(t)
	caught := 0
	proxy := mallory.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := c.server.Handler()
		if r.URL.Path == CAPath {
			h = mallory.server.Handler()
		} else {
			caught++
		}
		h.ServeHTTP(w, r)
	}), mallory.dir+"/server/tls")
	o, _ := c.machine(membership.Server, "victim", plainSecret)
	o.ServerURL = proxy.URL
	wantRefusal(t, o, run(t, o), CodeToken, "in between")
	if caught != 1 || !strings.Contains(c.log.String(), "token not accepted") {
		t.Errorf("the server did not notice: %d requests, log %s", caught, c.log.String())
	}
	// With the pin he is found before anything is sent.
	o.Token = c.token(token.Server)
	wantRefusal(t, o, run(t, o), CodeCA)
	if caught != 1 {
		t.Error("a request was sent to who shows another CA")
	}
	// He cannot show the right CA with a certificate of his own either.
	half := mallory.serve(c.server.Handler(), mallory.dir+"/server/tls")
	for _, text := range []string{plainSecret, c.token(token.Server)} {
		o.Token, o.ServerURL = text, half.URL
		wantRefusal(t, o, run(t, o), CodeCA, "did not sign")
	}
	// Nor answer by himself.
	mallory.found("another-secret")
	o.Token, o.ServerURL = plainSecret, mallory.http.URL
	wantRefusal(t, o, run(t, o), CodeToken)
	liar := mallory.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == CAPath {
			mallory.server.Handler().ServeHTTP(w, r)
			return
		}
		writeJSON(w, http.StatusOK, reply{V: 1, Salt: make([]byte, saltSize), Sealed: make([]byte, 200)})
	}), mallory.dir+"/server/tls")
	o.ServerURL = liar.URL
	wantRefusal(t, o, run(t, o), CodeCA, "does not know the token's secret")
}

// TestNoServerCertificateOfNodes shows that neither a kubelet nor a client of the cluster passes as a server.
func TestNoServerCertificateOfNodes(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{pki.KubeletServer, pki.Admin, pki.Store} {
		path := pki.PairFile(c.dir+"/server/tls", name)
		pair, err := tls.LoadX509KeyPair(path, path)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(c.server.Handler())
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		s.StartTLS()
		o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
		o.ServerURL = s.URL
		wantRefusal(t, o, run(t, o), CodeCA)
		s.Close()
	}
}

func TestRateLimit(t *testing.T) {
	c := newCluster(t)
	bad, _ := c.machine(membership.Agent, "a", "guess")
	for range sourceBurst {
		wantRefusal(t, bad, run(t, bad), CodeToken)
	}
	var wait time.Duration
	bad.pause = func(_ context.Context, d time.Duration) error { wait = d; return errStop }
	err := run(t, bad)
	var l *later
	if !errors.As(err, &l) || IsRefusal(err) || l.after <= 0 || l.after > sourceRate || wait < l.after {
		t.Fatalf("Run = %v (pause %v); want to be told to come back", err, wait)
	}
	good, _ := c.machine(membership.Agent, "b", c.token(token.Agent))
	if err := run(t, good); err == nil {
		t.Error("a source with too many failures was answered")
	}
	c.advance(sourceRate)
	mustRun(t, good)
	for range sourceBurst + 2 { // successes cost nothing
		o, _ := c.machine(membership.Witness, "w", c.token(token.Server))
		o.Dir = good.Dir + "/w"
		if err := os.RemoveAll(o.path("server")); err != nil {
			t.Fatal(err)
		}
		if err := run(t, o); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(o.membershipFile()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBodies(t *testing.T) {
	c := newCluster(t)
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", JoinPath, "", http.StatusMethodNotAllowed},
		{"POST", CAPath, "", http.StatusMethodNotAllowed},
		{"POST", JoinPath, "", http.StatusBadRequest},
		{"POST", JoinPath, `{"v":2}`, http.StatusBadRequest},
		{"POST", JoinPath, `{"v":1}`, http.StatusBadRequest},
		{"POST", JoinPath, strings.Repeat("x", maxRequest+1), http.StatusRequestEntityTooLarge},
		{"POST", RenewPath, `{"v":1}`, http.StatusBadRequest},
		{"GET", "/cairn/v1/else", "", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.want {
			t.Errorf("%s %s = %d; want %d", tt.method, tt.path, w.Code, tt.want)
		}
	}
}
