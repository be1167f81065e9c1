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
	"strings"
	"time"
)

// errNotReady marks the answer of a server that lives and wants no requests.
var errNotReady = errors.New("not ready")

// maxAnswer bounds what is read of an unready server's explanation.
const maxAnswer = 8 << 10

// probe asks the server at address whether it is ready: nil, an error that
// wraps errNotReady, or another error when nobody trusted answers. With cfg
// nil all that can be known is whether somebody listens.
//
// Each probe makes a connection of its own, for that is what it is to prove.
func (b *Balancer) probe(ctx context.Context, address string, cfg *tls.Config) error {
	dial, cancel := context.WithTimeout(ctx, b.timing.dial)
	defer cancel()
	raw, err := b.dialer().DialContext(dial, "tcp", address)
	if err != nil {
		return err
	}
	defer raw.Close()
	if cfg == nil {
		return nil
	}
	// The deadline covers what the context's end cannot interrupt.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })
	defer stop()
	conn := tls.Client(raw, probeConfig(cfg, address))
	if err := conn.SetDeadline(time.Now().Add(b.timing.answer)); err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(b.timing.answer)); err != nil {
		return err
	}
	return askReady(conn, address)
}

// probeConfig adapts the caller's configuration: who is to answer, and in
// which protocol.
func probeConfig(cfg *tls.Config, address string) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	if cfg.ServerName == "" {
		// checkAddress has seen to it that there is a host.
		cfg.ServerName, _, _ = net.SplitHostPort(address)
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
