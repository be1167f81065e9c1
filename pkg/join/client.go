package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/token"
)

const (
	dialTimeout    = 5 * time.Second
	requestTimeout = 30 * time.Second
	defaultPort    = "6443"
	// serverName is in the certificate of every apiserver. What it was reached by need not be: behind NAT or a balancer
	// the servers do not know that address.
	serverName = "kubernetes"
)

// remote is a server as seen from a machine that wants something of it.
type remote struct {
	address string // host:port
	clock   func() time.Time
}

// hostPort returns what a server's URL names.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func newRemote(serverURL string, clock func() time.Time) (remote, error) {
	u, err := url.Parse(serverURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return remote{}, refuse(CodeConfig, "cairn.server_url %q is not https://HOST:6443: correct the configuration", serverURL)
	}
	return remote{address: hostPort(u), clock: clock}, nil
}

// client returns an HTTP client for one exchange; without roots it trusts everybody.
func (r remote) client(roots []*x509.Certificate) *http.Client {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
	if roots != nil {
		// Chain and usage are verified here, but the name is the one that all servers have.
		conf.VerifyConnection = func(s tls.ConnectionState) error { return r.verify(s, roots) }
	}
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{ // no proxy: a server is inside
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			TLSClientConfig:     conf,
			DisableKeepAlives:   true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (r remote) verify(s tls.ConnectionState, roots []*x509.Certificate) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: serverName, CurrentTime: r.clock(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range roots {
		o.Roots.AddCert(c)
	}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(o)
	return err
}

// response is what came back, and the time on the server's clock, zero if it did not tell.
type response struct {
	status int
	header http.Header
	body   []byte
	date   time.Time
}

// do sends a request and reads at most limit bytes. Its errors say what to look at.
func (r remote) do(ctx context.Context, client *http.Client, method, path string, body []byte, limit int64) (*response, error) {
	q, err := http.NewRequestWithContext(ctx, method, "https://"+r.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, refuse(CodeConfig, "cairn.server_url: %v", err)
	}
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	p, err := client.Do(q)
	if err != nil {
		return nil, r.explain(err)
	}
	defer p.Body.Close()
	data, err := io.ReadAll(io.LimitReader(p.Body, limit+1))
	if err != nil {
		return nil, r.explain(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is not a Cairn server: it answers with more than %d bytes", r.address, limit)
	}
	date, err := http.ParseTime(p.Header.Get("Date"))
	if err != nil {
		date = time.Time{}
	}
	return &response{p.StatusCode, p.Header, data, date}, nil
}

// ca asks for the cluster's CA and compares the server's clock with the own.
func (r remote) ca(ctx context.Context, t token.Token) (*x509.Certificate, error) {
	ca, date, err := r.caAt(ctx, t)
	if err != nil {
		return nil, err
	}
	if now := r.clock(); !date.IsZero() && now.Sub(date).Abs() > maxSkew {
		return nil, &skewError{machine: now, server: date}
	}
	return ca, nil
}

// caAt asks for the cluster's CA without verifying who answers, and compares it with the token. It also returns the time
// that the server claims, zero for none.
func (r remote) caAt(ctx context.Context, t token.Token) (ca *x509.Certificate, date time.Time, err error) {
	p, err := r.do(ctx, r.client(nil), http.MethodGet, CAPath, nil, maxCA)
	if err != nil {
		return nil, date, err
	}
	if p.status >= 500 {
		return nil, date, fmt.Errorf("the server %s is not ready yet (it answers %d)", r.address, p.status)
	}
	certs, err := cert.ParseCertsPEM(p.body)
	if p.status != http.StatusOK || err != nil || !certs[0].IsCA {
		return nil, date, fmt.Errorf("%s is not a Cairn server, or one of an earlier release: it answers %d to GET %s. Check cairn.server_url", r.address, p.status, CAPath)
	}
	ca = certs[0]
	if !t.Plain() {
		if ca = pinned(certs, t.Pin); ca == nil {
			return nil, date, refuse(CodeCA, "the server %s belongs to another cluster, or somebody is in between: its CA is %s, the token wants %s. "+
				"Check cairn.server_url, or copy the token from a server of the right cluster", r.address, token.Pin(certs[0].Raw), t.Pin)
		}
	}
	return ca, p.date, nil
}

// pinned returns the certificate that the token names.
func pinned(certs []*x509.Certificate, pin string) *x509.Certificate {
	for _, c := range certs {
		if token.Pin(c.Raw) == pin && c.IsCA {
			return c
		}
	}
	return nil
}

// exchange sends a sealed request and opens the answer.
func (r remote) exchange(ctx context.Context, ca *x509.Certificate, s sealer, plain []byte) (*answer, error) {
	sealed, err := s.seal(plain)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(envelope{V: protocolVersion, Token: s.id, Salt: s.salt, Sealed: sealed})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	p, err := r.do(ctx, r.client([]*x509.Certificate{ca}), http.MethodPost, JoinPath, body, maxAnswer)
	if err != nil {
		return nil, err
	}
	if p.status != http.StatusOK {
		err := r.failed(p)
		if r := new(Refusal); errors.As(err, &r) && r.Code == CodeToken && s.id == "" {
			return nil, refuse(CodeToken, "%s; or somebody is in between, who shows the CA %s", r.Text, token.Pin(ca.Raw))
		}
		return nil, err
	}
	var sealedReply reply
	if err := json.Unmarshal(p.body, &sealedReply); err != nil || sealedReply.V != protocolVersion || len(sealedReply.Salt) != saltSize {
		return nil, fmt.Errorf("the server %s answers with something that is no reply to a join request", r.address)
	}
	opened, err := s.answering(sealedReply.Salt).open(sealedReply.Sealed)
	if err != nil {
		return nil, refuse(CodeCA, "what answers at %s does not know the token's secret: it is another cluster's server, or somebody is in between", r.address)
	}
	var a answer
	if err := json.Unmarshal(opened, &a); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", r.address, err)
	}
	switch {
	case a.Problem == nil:
	case a.Problem.Code == codeClock && !a.Time.IsZero():
		return nil, &skewError{machine: r.clock(), server: a.Time}
	default:
		return nil, a.Problem.asError(r.address, 0)
	}
	return &a, nil
}

// failed is the error of an answer that is not the one wanted.
func (r remote) failed(p *response) error {
	var told problem
	if json.Unmarshal(p.body, &told) != nil || told.Code == "" {
		if p.status >= 500 {
			return fmt.Errorf("the server %s is not ready yet (it answers %d)", r.address, p.status)
		}
		return fmt.Errorf("%s is not a Cairn server, or one of an earlier release: it answers %d", r.address, p.status)
	}
	seconds, err := strconv.Atoi(p.header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > int(longestWait/time.Second) {
		seconds = 0
	}
	return told.asError(r.address, time.Duration(seconds)*time.Second)
}

// asError is the error that a problem stands for on the machine.
func (p problem) asError(address string, wait time.Duration) error {
	text := strings.Map(func(r rune) rune { // it goes to a console
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, p.Text)
	switch p.Code {
	case codeUnavailable, codeLimited, codeClock:
		return &later{fmt.Errorf("the server %s: %s", address, text), wait}
	}
	return &Refusal{p.Code, text}
}

// newSealer derives what a token seals with, for the cluster of that CA.
func newSealer(stretch *stretcher, t token.Token, ca *x509.Certificate) (sealer, error) {
	hash := sha256.Sum256(ca.Raw)
	master, err := stretch.master(t.ID, t.Secret, hash)
	if err != nil {
		return sealer{}, err
	}
	salt, err := newSalt()
	if err != nil {
		return sealer{}, err
	}
	return sealer{master: master, salt: salt, label: labelRequest, ca: hash, id: t.ID}, nil
}
