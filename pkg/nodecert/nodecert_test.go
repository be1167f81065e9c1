package nodecert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/pki"
)

const clientFile, servingFile = "kubelet-client.pem", "kubelet-server.pem"

func ensure(t *testing.T, o Options, want ...string) {
	t.Helper()
	got, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("Ensure wrote %v; want %v", got, want)
	}
}

// verify checks that both certificates are valid in the cluster.
func (c *cluster) verify(t *testing.T) {
	t.Helper()
	for name, issuer := range map[string]string{pki.KubeletClient: pki.ClientCA, pki.KubeletServer: pki.KubeletCA} {
		have, err := loadPair(c.dir, name)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := cert.CertsFromFile(pki.CertFile(c.pki.Dir, issuer))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca[0])
		usage := x509.ExtKeyUsageClientAuth
		if name == pki.KubeletServer {
			usage = x509.ExtKeyUsageServerAuth
			for _, host := range []string{"shop-2", c.addrs[0].String()} {
				if err := have.Leaf.VerifyHostname(host); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := have.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: c.clock(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("%s at %v: %v", name, c.clock(), err)
		}
		info, err := os.Stat(pki.PairFile(c.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", name, info.Mode().Perm())
		}
	}
}

// made checks who made the requests since the last call, and how often a bootstrap certificate was asked for.
func (c *cluster) made(t *testing.T, bootstraps int, users ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.users, users) || c.bootstraps != bootstraps {
		t.Errorf("requests by %q with %d bootstrap certificates; want %q with %d", c.users, c.bootstraps, users, bootstraps)
	}
	c.users, c.bootstraps = nil, 0
}

const (
	joining = "cairn:join:shop-2"
	self    = "system:node:shop-2"
)

// TestYears follows an agent from its joining through renewals and a year in a cupboard.
func TestYears(t *testing.T) {
	c := newCluster(t)
	o := c.options()
	const day = 24 * time.Hour

	ensure(t, o, clientFile, servingFile)
	c.verify(t)
	c.made(t, 1, joining, self)
	ensure(t, o)
	c.made(t, 0)

	c.pass(240 * day)
	ensure(t, o)
	c.pass(10 * day)
	ensure(t, o, clientFile, servingFile)
	c.verify(t)
	c.made(t, 0, self, self)

	c.pass(400 * day)
	c.ensure() // the servers were at work
	ensure(t, o, clientFile, servingFile)
	c.verify(t)
	c.made(t, 1, joining, self)

	c.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
	ensure(t, o, servingFile)
	c.verify(t)
	c.made(t, 0, self)

	o.Addresses = func() ([]netip.Addr, error) { return nil, pki.ErrNoAddress }
	ensure(t, o) // a pulled cable is no reason
	o.Addresses = c.options().Addresses

	if err := os.WriteFile(pki.PairFile(c.dir, pki.KubeletServer), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(t, o, servingFile)
	if err := os.Truncate(pki.PairFile(c.dir, pki.KubeletClient), 0); err != nil {
		t.Fatal(err)
	}
	ensure(t, o, clientFile)
	c.verify(t)
	c.made(t, 1, self, joining)

	o.Node = "shop-3" // renamed: what it has is another's
	o.Bootstrap = func(context.Context) (tls.Certificate, error) { return tls.Certificate{}, errors.New("name taken") }
	if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), "name taken") {
		t.Errorf("Ensure of another node = %v; want to begin anew", err)
	}
}

// TestWrongClocks has a machine whose clock differs from the servers'.
func TestWrongClocks(t *testing.T) {
	for _, tt := range []struct {
		name string
		skew time.Duration
		err  string
	}{
		{"1970", -built.Sub(time.Unix(0, 0)), ""},
		{"an hour behind", -time.Hour, ""},
		{"a month ahead", 30 * 24 * time.Hour, ""},
		{"two years ahead", 2 * 365 * 24 * time.Hour, "one of the two clocks is wrong"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.skew = tt.skew
			o := c.options()
			if tt.err != "" {
				if _, err := Ensure(t.Context(), o); err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Ensure = %v; want %q", err, tt.err)
				}
				return
			}
			ensure(t, o, clientFile, servingFile)
			ensure(t, o)
			c.skew = 0 // put right
			ensure(t, o)
			c.verify(t)
		})
	}
}

// TestServerKnowsBetter has a certificate that is valid by the machine's clock, and not by the server's.
func TestServerKnowsBetter(t *testing.T) {
	c := newCluster(t)
	c.life = time.Hour
	o := c.options()
	ensure(t, o, clientFile, servingFile)
	c.made(t, 1, joining, self)
	c.pass(2 * time.Hour)
	c.skew = -70 * time.Minute // third reached, not the end
	ensure(t, o, clientFile, servingFile)
	c.made(t, 1, joining, self)
	c.verify(t)
}

func TestRefusals(t *testing.T) {
	other := newCluster(t)
	for _, tt := range []struct {
		name   string
		change func(*cluster, *Options)
		err    string
		is     error
	}{
		{"denied", func(c *cluster, _ *Options) {
			c.answer = condition(certificatesv1.CertificateDenied, "NodeNameTaken", "shop-2 is alive at 192.0.2.3")
		}, "NodeNameTaken: shop-2 is alive at 192.0.2.3", ErrDenied},
		{"failed", func(c *cluster, _ *Options) {
			c.answer = condition(certificatesv1.CertificateFailed, "SignerValidationFailure", "bad usages")
		}, "SignerValidationFailure: bad usages", ErrDenied},
		{"nobody answers", func(c *cluster, _ *Options) {
			c.answer = func(*certificatesv1.CertificateSigningRequest) {}
		}, "no answer to the request within 2m0s", nil},
		{"approved, never signed", func(c *cluster, _ *Options) {
			c.answer = condition(certificatesv1.CertificateApproved, "", "")
		}, "no answer to the request within 2m0s", nil},
		{"not truly denied", func(c *cluster, _ *Options) {
			c.answer = func(r *certificatesv1.CertificateSigningRequest) {
				r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: "False"}}
			}
		}, "no answer to the request", nil},
		{"deleted", func(c *cluster, _ *Options) {
			c.answer = func(r *certificatesv1.CertificateSigningRequest) { r.UID = "another" }
		}, "deleted", nil},
		{"another's certificate", func(c *cluster, _ *Options) {
			c.answer = func(r *certificatesv1.CertificateSigningRequest) {
				c.sign(r)
				data, err := os.ReadFile(pki.PairFile(c.pki.Dir, pki.KubeletClient))
				if err != nil {
					c.t.Error(err)
				}
				r.Status.Certificate = data[:bytes.Index(data, []byte("-----BEGIN EC"))]
			}
		}, "another key", nil},
		{"signed by another cluster", func(c *cluster, _ *Options) {
			copyFile(c.t, pki.CertFile(other.pki.Dir, pki.ClientCA), pki.CertFile(c.dir, pki.ClientCA))
		}, "which is not the cluster this machine joined", nil},
		{"server of another cluster", func(c *cluster, o *Options) { o.Server = other.server.URL }, "is not a server of the cluster", nil},
		{"no authority", func(c *cluster, _ *Options) {
			if err := os.Remove(pki.CertFile(c.dir, pki.ServerCA)); err != nil {
				c.t.Error(err)
			}
		}, "server-ca.crt: no such file", nil},
		{"no bootstrap", func(_ *cluster, o *Options) { o.Bootstrap = nil }, "let the machine join again", nil},
		{"refused bootstrap", func(_ *cluster, o *Options) {
			o.Bootstrap = func(context.Context) (tls.Certificate, error) {
				return tls.Certificate{}, errors.New("token expired")
			}
		}, "begin anew: token expired", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			o := c.options()
			tt.change(c, &o)
			written, err := Ensure(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tt.err) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Ensure = %v, %v; want %q", written, err, tt.err)
			}
			for _, name := range []string{pki.KubeletClient, pki.KubeletServer} {
				if _, err := os.Stat(pki.PairFile(c.dir, name)); err == nil {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

func condition(kind certificatesv1.RequestConditionType, reason, message string) func(*certificatesv1.CertificateSigningRequest) {
	return func(r *certificatesv1.CertificateSigningRequest) {
		r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: kind, Status: "True", Reason: reason, Message: message}}
	}
}

// TestServerDiesMeanwhile loses the server between the request and its answer.
func TestServerDiesMeanwhile(t *testing.T) {
	c := newCluster(t)
	looks := 0
	c.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		looks++
		if looks <= 3 {
			panic(http.ErrAbortHandler) // cuts the connection
		}
		if looks == 4 {
			refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
			return true
		}
		return false
	}
	ensure(t, c.options(), clientFile, servingFile)
	c.verify(t)
	c.made(t, 1, joining, self)
}

// TestStopped ends Ensure while it waits, and starts anew.
func TestStopped(t *testing.T) {
	c := newCluster(t)
	c.answer = func(*certificatesv1.CertificateSigningRequest) {}
	ctx, cancel := context.WithCancel(t.Context())
	o := c.options()
	o.sleep = func(context.Context, time.Duration) { cancel() }
	if _, err := Ensure(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure = %v; want the cancellation", err)
	}
	if err := Keep(ctx, o); err != nil {
		t.Errorf("Keep = %v; want nil", err)
	}
	c.answer = nil
	ensure(t, c.options(), clientFile, servingFile)
	c.verify(t)
}

// TestKeep runs through many short lives, with an outage in each second one that is shorter than what is left.
func TestKeep(t *testing.T) {
	for _, life := range []time.Duration{3 * time.Minute, 30 * time.Minute} {
		t.Run(life.String(), func(t *testing.T) {
			c := newCluster(t)
			c.life = life
			o := c.options()
			ctx, cancel := context.WithCancel(t.Context())
			end := c.clock().Add(10 * life)
			o.sleep = func(_ context.Context, d time.Duration) {
				c.verify(t)
				if d <= 0 || d > time.Minute+12*time.Second {
					t.Errorf("pause of %v", d)
				}
				c.pass(d)
				if c.clock().After(end) {
					cancel()
				}
			}
			ensure(t, c.options(), clientFile, servingFile)
			c.before = func(w http.ResponseWriter, _ *http.Request) bool {
				since := c.clock().Sub(built)
				if since%(2*life) > life/5 {
					return false
				}
				refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError)
				return true
			}
			if err := Keep(ctx, o); err != nil {
				t.Fatal(err)
			}
			if n := len(c.requests) / 2; n < 11 || n > 25 {
				t.Errorf("%d pairs of requests in ten lives; want one in each two thirds", n)
			}
			if c.bootstraps != 1 {
				t.Errorf("%d bootstrap certificates; want the first one alone", c.bootstraps)
			}
		})
	}
}

// TestKeepLogs counts the lines of a long outage.
func TestKeepLogs(t *testing.T) {
	c := newCluster(t)
	var lines bytes.Buffer
	o := c.options()
	o.Log = slog.New(slog.NewTextHandler(&lines, nil))
	ctx, cancel := context.WithCancel(t.Context())
	round := 0
	o.Bootstrap = func(ctx context.Context) (tls.Certificate, error) {
		switch {
		case round < 50:
			return tls.Certificate{}, errors.New("server away")
		case round < 60:
			return tls.Certificate{}, fmt.Errorf("name taken: %w", ErrDenied)
		}
		return c.bootstrap(ctx)
	}
	var pauses []time.Duration
	o.sleep = func(_ context.Context, d time.Duration) {
		pauses = append(pauses, d)
		if round++; round > 62 {
			cancel()
		}
		c.pass(d)
	}
	if err := Keep(ctx, o); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"server away", "name taken", "in order again"} {
		if n := strings.Count(lines.String(), line); n != 1 {
			t.Errorf("%q was logged %d times; want once:\n%s", line, n, lines.String())
		}
	}
	if pauses[0] > 12*time.Second || pauses[49] < time.Minute || pauses[49] > 72*time.Second || pauses[59] < 5*time.Minute {
		t.Errorf("pauses %v, %v, %v; want about 10 s, 1 min, 5 min", pauses[0], pauses[49], pauses[59])
	}
}
