package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// errNotReady marks the answer of a server that lives and wants no requests.
var errNotReady = errors.New("not ready")

// maxAnswer bounds what is read of an unready server's explanation.
const maxAnswer = 8 << 10

// errSlow marks a handshake that was not over in time. Who takes connections
// lives; whether it, the line or this machine is too busy is not known.
var errSlow = errors.New("tls handshake not over in time")

// errSilent marks that nothing at all came from a server.
var errSilent = errors.New("no answer")

// probe asks a server whether it is ready: nil, an error that wraps
// errNotReady or errSlow, or another error when nobody trusted answers, which
// wraps errSilent when nobody does. With cfg nil all that can be known is whether
// somebody listens.
//
// Each probe makes a connection of its own, for that is what it is to prove.
func (b *Balancer) probe(ctx context.Context, s *server, cfg *tls.Config) error {
	raw, err := b.reach(ctx, s)
	if err != nil {
		return err
	}
	defer raw.Close()
	b.pool.answered(s)
	if cfg == nil {
		return nil
	}
	// The deadline covers what the context's end cannot interrupt.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })
	defer stop()
	conn := tls.Client(raw, probeConfig(cfg, s))
	if err := conn.SetDeadline(time.Now().Add(b.timing.answer)); err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		if declined(err) && !s.strict {
			s.strict = true
			return b.probe(ctx, s, cfg)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: %w", errSlow, err)
		}
		return fmt.Errorf("tls: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(b.timing.answer)); err != nil {
		return err
	}
	return askReady(conn, s.address)
}

// classic are the key exchanges of checks. They carry no secret that a quantum
// computer could want later; the hybrid ones would be a third of their bytes.
func classic() []tls.CurveID {
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
}

// declined reports whether the server, and not this side, ended the handshake.
func declined(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// probeConfig adapts the caller's configuration: who is to answer, and in
// which protocol.
func probeConfig(cfg *tls.Config, s *server) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	// Whether it is ready a server tells anybody. To look at the node's
	// certificate each time would cost both sides more than all the rest.
	cfg.Certificates, cfg.GetClientCertificate = nil, nil
	if !s.strict {
		cfg.CurvePreferences = classic()
	}
	if cfg.ServerName == "" {
		// checkAddress has seen to it that there is a host.
		cfg.ServerName, _, _ = net.SplitHostPort(s.address)
	}
	return cfg
}

// askReady is one GET /readyz. From here on the server is known to live: every
// error is about readiness.
func askReady(conn net.Conn, address string) error {
	request, err := http.NewRequest(http.MethodGet, "https://"+address+"/readyz", nil)
	if err != nil {
		return err
	}
	request.Close = true
	request.Header.Set("User-Agent", "cairn-balancer")
	if err := request.Write(conn); err != nil {
		return fmt.Errorf("%w: %w", errNotReady, err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotReady, err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
		// A cluster may forbid strangers to ask; whoever forbids serves.
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%w: %s", errNotReady, response.Status)
	}
	return fmt.Errorf("%w: %s %s", errNotReady, response.Status, failedChecks(string(body)))
}

// failedChecks picks the lines of an apiserver's answer that say what is not
// ready: they begin with [-].
func failedChecks(body string) string {
	var failed []string
	for line := range strings.Lines(body) {
		if check, ok := strings.CutPrefix(line, "[-]"); ok {
			failed = append(failed, strings.TrimSpace(check))
		}
	}
	return strings.Join(failed, ", ")
}
