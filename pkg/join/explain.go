package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
)

// explain says what an error of the network or of TLS means for who has to find the cause. It keeps the cause wrapped.
func (r remote) explain(err error) error {
	var (
		name    *net.DNSError
		expired x509.CertificateInvalidError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		record  tls.RecordHeaderError
		dial    *net.OpError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &name):
		return fmt.Errorf("the name %s of the server is not known: check cairn.server_url and the name servers: %w", name.Name, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: check that the server runs and that cairn.server_url names its port: %w", r.address, err)
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return r.explainTime(expired)
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &expired):
		return refuse(CodeCA, "%s shows a certificate that its cluster's CA did not sign for an apiserver: "+
			"cairn.server_url leads somewhere else, or somebody is in between (%v)", r.address, err)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s does not speak TLS, so it is not a Cairn server: check cairn.server_url: %w", r.address, err)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), isTimeout(err) && errors.As(err, &dial) && dial.Op == "dial":
		return fmt.Errorf("%s does not answer: check the network and firewalls in between (TCP): %w", r.address, err)
	case isTimeout(err):
		return fmt.Errorf("the server %s accepts connections but does not answer yet: it may be starting: %w", r.address, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the server %s accepts connections and ends them without an answer: it may be starting, or be a balancer that has no server yet: %w", r.address, err)
	}
	return fmt.Errorf("ask %s: %w", r.address, err)
}

// isTimeout reports whether err is that something took too long.
func isTimeout(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout()
}

// explainTime tells both clocks when a certificate is not valid yet or no more.
func (r remote) explainTime(e x509.CertificateInvalidError) error {
	now := r.clock()
	if e.Cert != nil && now.Before(e.Cert.NotBefore) {
		return fmt.Errorf("this machine's clock says %s, and the certificate of %s is valid from %s: set the clock, or give it a time server (cairn.ntp_servers): %w",
			stamp(now), r.address, stamp(e.Cert.NotBefore), e)
	}
	end := "no more"
	if e.Cert != nil {
		end = "until " + stamp(e.Cert.NotAfter)
	}
	return fmt.Errorf("this machine's clock says %s, and the certificate of %s is valid %s: if the clock is right, look at the server: %w",
		stamp(now), r.address, end, e)
}
