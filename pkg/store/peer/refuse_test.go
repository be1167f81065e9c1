package peer_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// TestRefused has members with the wrong certificates call each other.
func TestRefused(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	good := issue(t, ca)
	now := time.Now()
	for _, tt := range []struct {
		name string
		bad  peer.Credentials
		// What the good member says of the bad one when called, and when calling.
		accepting, dialing string
	}{
		{"another CA", issue(t, foreign), "is it a member of another cluster?", "is it a member of another cluster?"},
		{"expired", issue(t, ca, peertest.Valid(now.Add(-48*time.Hour), now.Add(-24*time.Hour))), "", "check the clocks of both machines"},
		{"not yet valid", issue(t, ca, peertest.Valid(now.Add(24*time.Hour), now.Add(48*time.Hour))), "", "check the clocks of both machines"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, log := start(t, 1, good)
			b, badLog := start(t, 2, tt.bad)
			_, _, err := a.DialAddress(t.Context(), b.Addr().String(), protocol)
			if err == nil || !strings.Contains(err.Error(), tt.dialing) || !strings.Contains(err.Error(), "CN=") {
				t.Errorf("the good member calls: %v; want %q and the subject", err, tt.dialing)
			}
			_, _, err = b.DialAddress(t.Context(), a.Addr().String(), protocol)
			if err == nil {
				t.Fatal("the bad member got through")
			}
			if tt.accepting != "" {
				return // It did not trust the good one either.
			}
			for _, want := range []string{tt.bad.Certificate, "CN=node", "check this machine's clock", "Z to 2"} {
				if !strings.Contains(err.Error(), want) || !strings.Contains(badLog.String(), want) {
					t.Errorf("the bad member calls: %v\nand logs: %s\nwant %q", err, badLog, want)
				}
			}
			if log.String() != "" {
				t.Errorf("the good member was bothered: %s", log)
			}
		})
	}
}

// TestHalfTrust has a member trust a CA that the other does not.
func TestHalfTrust(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	a, log := start(t, 1, issue(t, ca))
	c := issue(t, foreign)
	var both []byte
	for _, file := range []string{ca.File, foreign.File} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	if err := os.WriteFile(c.CA, both, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, 2, c)
	_, _, err := b.DialAddress(t.Context(), a.Addr().String(), protocol)
	if err == nil || !strings.Contains(err.Error(), "the other side refused our certificate "+c.Certificate) {
		t.Errorf("DialAddress = %v; want that the other side refused, and what", err)
	}
	log.await(t, "is it a member of another cluster?")
}

// TestRefuseClient has clients that are no members, or not as they should be,
// connect.
func TestRefuseClient(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	now := time.Now()
	good := pairOf(t, issue(t, ca))
	for _, tt := range []struct {
		name   string
		change func(c *tls.Config)
		want   string
	}{
		{"no certificate", func(c *tls.Config) { c.GetClientCertificate = nil }, "didn't provide a certificate"},
		{"another CA", present(t, issue(t, foreign)), "is it a member of another cluster?"},
		{"expired", present(t, issue(t, ca, peertest.Valid(now.Add(-48*time.Hour), now.Add(-time.Hour)))), "check the clocks"},
		{"without the name", present(t, issue(t, ca, peertest.Names("other"))), "lacks the DNS name cairn-store"},
		{"for servers only", present(t, issue(t, ca, peertest.Usage(x509.ExtKeyUsageServerAuth))), "not for both client and server"},
		{"unknown protocol", func(c *tls.Config) { c.NextProtos = []string{"other/1"} }, "application protocol"},
		{"no protocol", func(c *tls.Config) { c.NextProtos = nil }, "the dialer names none"},
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "unsupported version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, log := start(t, 1, issue(t, ca))
			config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, GetClientCertificate: good}
			tt.change(config)
			conn, err := tls.Dial("tcp", n.Addr().String(), config)
			if err == nil {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				conn.Write(make([]byte, 16))
				if _, err = conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("read: %v; want that the connection ended", err)
				}
			}
			log.await(t, tt.want)
			if s := n.Stats(); s.Accepted != 0 || s.Refused != 1 {
				t.Errorf("stats: %+v; want one refusal", s)
			}
		})
	}
}

func pairOf(t *testing.T, c peer.Credentials) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
}

func present(t *testing.T, c peer.Credentials) func(*tls.Config) {
	return func(config *tls.Config) { config.GetClientCertificate = pairOf(t, c) }
}

// TestBadFiles starts members with files that can never do.
func TestBadFiles(t *testing.T) {
	ca, foreign := newCA(t), newCA(t)
	tests := []struct {
		name string
		c    peer.Credentials
		want []string
	}{
		{"key for all", issue(t, ca), []string{".key: mode 0640", "chmod 600"}},
		{"another CA's", issue(t, ca), []string{"CN=node", foreign.File, "not of this store's CA"}},
		{"without the name", issue(t, ca, peertest.Names()), []string{"node.crt", "lacks the DNS name cairn-store"}},
		{"for clients only", issue(t, ca, peertest.Usage(x509.ExtKeyUsageClientAuth)), []string{"node.crt", "not for both client and server"}},
		{"no key", issue(t, ca), []string{"no such file"}},
		{"CA without certificate", issue(t, ca), []string{"no certificate in it"}},
		{"expired and another CA's", issue(t, ca, peertest.Valid(time.Unix(0, 0), time.Unix(1e9, 0))), []string{"not of this store's CA"}},
	}
	for _, i := range []int{1, 6} {
		tests[i].c.CA = foreign.File
	}
	if err := os.Chmod(tests[0].c.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	tests[4].c.Key += ".none"
	tests[5].c.CA = tests[5].c.Key
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := peer.Listen(t.Context(), peer.Config{ID: 1, Listen: "127.0.0.1:0", Credentials: tt.c})
			if err == nil {
				n.Close()
				t.Fatal("Listen took it")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Listen: %v; want %q", err, want)
				}
			}
		})
	}
}
