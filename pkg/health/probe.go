package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"github.com/cairn-os/cairn/pkg/config"
)

// probeLook is a check of the owner's. Exactly one of its kinds is given.
func probeLook(p config.Probe) Look {
	l := Look{Name: "probe " + p.Name, Timeout: p.Timeout()}
	switch {
	case p.TCP != "":
		l.Do = func(ctx context.Context) Finding { return connect(ctx, p.TCP) }
	case len(p.Exec) > 0:
		l.Do = func(ctx context.Context) Finding { return execute(ctx, p.Exec, readOnly) }
	default:
		l.Do = func(ctx context.Context) Finding { return get(ctx, p.HTTP) }
	}
	return l
}

func connect(ctx context.Context, address string) Finding {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return Finding{Text: address + " takes no connection: " + cause(ctx, err)}
	}
	conn.Close() // nothing was said on it
	return Finding{OK: true, Text: address + " takes connections"}
}

// get makes the request on a connection of its own, and without the environment's proxy: what is probed is here, and
// shall answer a new client.
func get(ctx context.Context, p config.HTTPProbe) Finding {
	transport := &http.Transport{
		Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig: &tls.Config{ServerName: p.Host, InsecureSkipVerify: p.Insecure, MinVersion: tls.VersionTLS12},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return Finding{Text: "the address of this probe is not readable"} // has been checked; err would quote it
	}
	req.Host = p.Host
	req.Header.Set("User-Agent", "cairnd")
	res, err := client.Do(req)
	if err != nil {
		return Finding{Text: p.ShownURL() + ": " + cause(ctx, err)}
	}
	defer res.Body.Close()
	switch {
	case p.Status == res.StatusCode, p.Status == 0 && 200 <= res.StatusCode && res.StatusCode <= 299:
		return Finding{OK: true, Text: p.ShownURL() + " answers " + res.Status}
	case p.Status == 0:
		return Finding{Text: p.ShownURL() + " answers " + described(res)}
	}
	return Finding{Text: fmt.Sprintf("%s answers %s; want %d", p.ShownURL(), described(res), p.Status)}
}

// described is the answer's status with the first words of its body; a redirect's only repeat the address.
func described(res *http.Response) string {
	if res.StatusCode/100 == 3 {
		return res.Status
	}
	if words := firstWords(res.Body); words != "" {
		return res.Status + " (" + words + ")"
	}
	return res.Status
}
