package nodecert

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/pki"
)

// ErrDenied says that the cluster refused a certificate; the error that wraps it says why.
var ErrDenied = errors.New("the cluster denied it")

const (
	// serverName is in the certificate of every apiserver. What it was reached by need not be: behind NAT or a balancer the
	// servers do not know that address.
	serverName = "kubernetes"
	// requestTimeout bounds one call of the API.
	requestTimeout = 30 * time.Second
	// firstLook and lastLook bound the pauses between looks at an open request. The cluster answers in some 100 ms.
	firstLook = 100 * time.Millisecond
	lastLook  = 5 * time.Second
)

// request asks the cluster for p's certificate for the key, and returns it as PEM.
func (o Options) request(ctx context.Context, p part, key *ecdsa.PrivateKey, by tls.Certificate) ([]byte, error) {
	client, hangUp, err := o.connect(by)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	requests := client.CertificatesV1().CertificateSigningRequests()
	template := p.template
	data, err := cert.MakeCSRFromTemplate(key, &template)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	made, err := requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: p.name + "-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: data, SignerName: p.signer, Usages: p.usages},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, o.explain(fmt.Errorf("request: %w", err))
	}
	return o.await(ctx, requests, made)
}

// await waits for the answer to a request. A server that dies meanwhile does no harm: the next one knows of it.
func (o Options) await(ctx context.Context, requests certificatesclient.CertificateSigningRequestInterface, made *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	deadline := o.Now().Add(o.patience)
	var last error
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		o.sleep(ctx, pause)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		now, err := requests.Get(ctx, made.Name, metav1.GetOptions{})
		switch {
		case err == nil && now.UID != made.UID, apierrors.IsNotFound(err):
			return nil, errors.New("the request was deleted before an answer came")
		case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			return nil, fmt.Errorf("look at the request: %w", err)
		case err == nil:
			if data, err := answer(now); err != nil || data != nil {
				return data, err
			}
		}
		last = err
		if !o.Now().Before(deadline) {
			break
		}
	}
	if last != nil {
		return nil, o.explain(fmt.Errorf("look at the request: %w", last))
	}
	return nil, fmt.Errorf("no answer to the request within %v: is a server's control plane ready?", o.patience)
}

// answer returns the certificate of a request, nothing while it is open, or an error when there will be none.
func answer(r *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	approved := false
	for _, c := range r.Status.Conditions {
		// Versions before 1.19 left the status out.
		if c.Status != corev1.ConditionTrue && c.Status != "" {
			continue
		}
		switch c.Type {
		case certificatesv1.CertificateDenied:
			return nil, fmt.Errorf("%w: %s: %s", ErrDenied, c.Reason, c.Message)
		case certificatesv1.CertificateFailed:
			return nil, fmt.Errorf("%w: the signer failed: %s: %s", ErrDenied, c.Reason, c.Message)
		case certificatesv1.CertificateApproved:
			approved = true
		}
	}
	if !approved || len(r.Status.Certificate) == 0 {
		return nil, nil
	}
	return r.Status.Certificate, nil
}

// connect returns a client that has the certificate by, and what ends its connections. The client has a transport of its
// own: the shared ones of client-go are never forgotten, and each certificate would add one.
func (o Options) connect(by tls.Certificate) (kubernetes.Interface, func(), error) {
	servers, err := cert.CertsFromFile(pki.CertFile(o.Dir, pki.ServerCA))
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range servers {
		roots.AddCert(c)
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: requestTimeout}).DialContext,
		TLSClientConfig: &tls.Config{
			RootCAs: roots, Time: o.now, MinVersion: tls.VersionTLS12, ServerName: serverName,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &by, nil },
		},
		TLSHandshakeTimeout: requestTimeout,
	}
	// No limit of client-go's own: there are a few calls, and await pauses between them.
	config := &rest.Config{Host: o.Server, UserAgent: "cairn-node", QPS: -1}
	client, err := kubernetes.NewForConfigAndClient(config, &http.Client{Transport: transport, Timeout: requestTimeout})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %s: %w", o.Server, err)
	}
	return client, transport.CloseIdleConnections, nil
}

// explain adds what to do to errors whose text does not say it.
func (o Options) explain(err error) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w (this machine's clock shows %v: one of the two clocks is wrong)", err, o.now().UTC().Format(time.RFC3339))
	case errors.As(err, &unknown):
		return fmt.Errorf("%w (%s is not a server of the cluster this machine joined)", err, o.Server)
	}
	return err
}
