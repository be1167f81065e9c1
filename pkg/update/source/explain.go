package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"
)

const portal = "is a captive portal or a login in between? Open the address in a browser on this network"

var errStalled = errors.New("next to nothing came")

// errWith adds to kind what to do.
func errWith(kind error, what string) error { return fmt.Errorf("%w: %s", kind, what) }

// classify takes the net/http package's wrapping off err, and finds what another try would only repeat.
func (c *conn) classify(err error) error {
	if errors.Is(context.Cause(c.ctx), errStalled) {
		return fmt.Errorf("%w in %v", errStalled, c.watch.whole)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // it repeats the address
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return final{certificate(cert.Err)}
	}
	return err
}

// certificate says what is wrong with a server's certificate.
func certificate(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("the server's certificate is not valid now: is this machine's clock right? Else renew the certificate: %w", err)
	}
	var authority x509.UnknownAuthorityError
	if errors.As(err, &authority) {
		return fmt.Errorf("the server's certificate is of an unknown authority: is a captive portal or an inspecting proxy in between? "+
			"Else add the authority to this machine: %w", err)
	}
	var name x509.HostnameError
	if errors.As(err, &name) {
		return fmt.Errorf("the server's certificate is for another name: is the address right, and no captive portal in between? %w", err)
	}
	return fmt.Errorf("the server's certificate is not accepted: %w", err)
}

// explain adds to a broken connection's err what to look at.
func explain(err error) error {
	var dns *net.DNSError
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("the connection breaks off: is the line good, and the file whole on the server? %w", err)
	case errors.As(err, &dns):
		return fmt.Errorf("the server's name is not found: is the network up, and the address right? %w", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody answers: does the server run, and is the port right? %w", err)
	case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Errorf("no way to the server: is the network up? %w", err)
	case errors.Is(err, errStalled):
		return fmt.Errorf("%w: is the line up, and the server not overloaded?", err)
	}
	return err
}
