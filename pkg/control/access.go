package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/util/keyutil"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/pki"
)

// longestAccess bounds the life of an operator's certificate: nothing can take one back but a new authority.
const longestAccess = 365 * 24 * time.Hour

// mastersGroup may do everything, whatever RBAC says.
const mastersGroup = "system:masters"

// kubeconfig makes a client configuration with a certificate of its own.
func (op *operator) kubeconfig(r admin.KubeconfigRequest) (yamlText, error) {
	server, err := op.checkAccess(r)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", r.User, err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", r.User, err)
	}
	o := op.options
	certificate, err := pki.Sign(o.tls(), pki.ClientCA, key.Public(), pki.Request{
		User: r.User, Groups: r.Groups, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Life: r.TTL, Floor: o.ClockFloor,
	})
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(o.authority(pki.ServerCA))
	if err != nil {
		return nil, fmt.Errorf("authority of servers: %w", err)
	}
	log := op.log.Info
	if slices.Contains(r.Groups, mastersGroup) {
		log = op.log.Warn // nothing can limit or revoke this one
	}
	log("client configuration made", "user", r.User, "groups", r.Groups, "life", r.TTL)
	return kubeconfig.Embedded{Server: server, User: r.User, CA: ca, Cert: certificate, Key: keyPEM}.Bytes()
}

// checkAccess refuses what would not be an operator's: identities of the cluster's own parts are made from files that
// are renewed, and one in a person's hands could not be told from them.
func (op *operator) checkAccess(r admin.KubeconfigRequest) (server string, err error) {
	bad := func(format string, args ...any) error { return refuse(http.StatusBadRequest, format, args...) }
	switch {
	case r.User == "" || len(r.User) > 64:
		return "", bad("a user name has 1 to 64 characters")
	case strings.HasPrefix(r.User, "system:"):
		return "", bad("user %q: names that begin with system: are those of the cluster's own parts", r.User)
	case r.TTL < time.Minute || r.TTL > longestAccess:
		return "", bad("a certificate can live from 1m to %s, not %s: it cannot be revoked", longestAccess, r.TTL)
	}
	for _, g := range r.Groups {
		if g == "" || len(g) > 64 || strings.HasPrefix(g, "system:") && g != mastersGroup {
			return "", bad("group %q: of those that begin with system: only %s can be given", g, mastersGroup)
		}
	}
	if r.Server == "" {
		return serverURL(op.options.addresses[0], op.options.Port), nil
	}
	u, err := url.Parse(r.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", bad("server %q: want a URL such as %s", r.Server, serverURL(op.options.addresses[0], op.options.Port))
	}
	return r.Server, nil
}
