package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// Who the holder of a bootstrap certificate is to the apiserver.
const (
	BootstrapUserPrefix = "cairn:join:" // and the node's name
	BootstrapGroup      = "cairn:joining"
)

func sameText(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// admit decides about a request whose sender knows the token's secret, and makes what the machine gets. What it changes
// comes last: first the token is used up, then the name taken. A server that ends between the two leaves a token that
// the same machine can use again.
func (s *Server) admit(ctx context.Context, o *opened) (*answer, error) {
	if o.problem != nil {
		return nil, o.problem
	}
	now := s.Now()
	if err := s.checkRequest(o, now); err != nil {
		return nil, err
	}
	settings, err := LoadSettings(ctx, s.Client)
	if err != nil {
		return nil, err
	}
	q := o.request
	if err := checkSettings(settings, q.Settings); err != nil {
		return nil, err
	}
	c := o.claim(now)
	if settings.Flannel != "none" && q.Role != membership.Witness {
		if err := s.checkAddresses(ctx, c, nodeAddresses(q.Addresses, settings)); err != nil {
			return nil, err
		}
	}
	if q.Role == membership.Server {
		if err := s.checkRotation(ctx); err != nil {
			return nil, err
		}
	}
	a, err := s.material(ctx, q.Role, q.Node, q.CSR, settings)
	if err != nil {
		return nil, err
	}
	if err := s.may(ctx, c); err != nil {
		return nil, err
	}
	if o.token.Once {
		if err := consume(ctx, s.Client, o.token.ID, o.use(), now); err != nil {
			return nil, err
		}
	}
	if err := s.take(ctx, c); err != nil {
		return nil, err
	}
	return a, nil
}

// claim is the request's wish for its name. A server's addresses are recorded with it, for who has a server's token is
// believed; an agent's when they were checked for its certificate.
func (o *opened) claim(now time.Time) claim {
	q := o.request
	r := NodeRecord{Name: q.Node, Identity: o.identity, Role: q.Role, Joined: now}
	if q.Role == membership.Server {
		r.Addresses = plainAddresses(q.Addresses)
	}
	return claim{record{NodeRecord: r}, o.token.Role, now}
}

// use is what a one-time token is used for.
func (o *opened) use() use { return use{o.identity, o.request.Node, o.request.Role} }

// checkRequest looks at what needs no asking of the cluster.
func (s *Server) checkRequest(o *opened, now time.Time) error {
	q, t := o.request, o.token
	if t.expired(now) {
		return refuse(CodeExpired, "the token %s expired at %s: create another with \"cairnctl token create\"", t.ID, stamp(t.Expires))
	}
	if !q.Role.Known() {
		return refuse(CodeRequest, "the role %q is none of server, agent and witness", logged(string(q.Role)))
	}
	if err := checkNodeName(q.Node); err != nil {
		return err
	}
	if !t.admits(q.Role) {
		return refuse(CodeRole, "the token %s admits agents only, and this machine asks to be a %s: use a token for servers", t.ID, q.Role)
	}
	if err := t.used(o.use(), now); err != nil {
		return err
	}
	if q.Role == membership.Server && (q.Settings == nil || q.Settings.Datastore == "") {
		return refuse(CodeRequest, "the machine asks to be a server and does not say where it keeps Kubernetes' state: give it the servers' release")
	}
	if skew := now.Sub(q.Time); skew.Abs() > maxSkew {
		return &skewError{machine: q.Time, server: now}
	}
	if q.Role == membership.Witness {
		return nil // runs nothing of Kubernetes
	}
	return checkVersion(s.Version, q.Version)
}

// skewError says that the clocks of the machine and the server are apart.
type skewError struct{ machine, server time.Time }

func (e *skewError) Error() string {
	return fmt.Sprintf("the clocks differ: this machine's says %s, the server's %s. Set the one that is wrong, or give it a time server (cairn.ntp_servers)",
		stamp(e.machine), stamp(e.server))
}

// asksTime reports whether err is the answer to a machine that wants nothing but the time.
func asksTime(err error) bool {
	var e *skewError
	return errors.As(err, &e) && e.machine.IsZero()
}

// busyError is a reason that passes, told to the machine as it is.
type busyError struct{ text string }

func (e *busyError) Error() string { return e.text }

// checkRotation puts a server off while the cluster's authorities are replaced.
func (s *Server) checkRotation(ctx context.Context) error {
	_, err := s.Client.CoreV1().Secrets(Namespace).Get(ctx, RotationName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for a rotation of the authorities: %w", err)
	}
	return &busyError{"the cluster's certificate authorities are being replaced, and no server can join until that is done; " +
		"\"cairnctl cluster status\" on a server says what it waits for; a server that is to join anew must be removed first, " +
		"with \"kubectl delete node NAME\""}
}

// checkVersion refuses a machine whose Kubernetes is newer than the apiserver's by more than patches: a kubelet must not
// be (https://kubernetes.io/releases/version-skew-policy/).
func checkVersion(server, machine string) error {
	have, err := version.ParseGeneric(server)
	if err != nil {
		return fmt.Errorf("own version of Kubernetes: %w", err)
	}
	want, err := version.ParseGeneric(machine)
	if err != nil {
		return refuse(CodeRequest, "the machine's version of Kubernetes, %q, cannot be read", logged(machine))
	}
	if want.Major() > have.Major() || (want.Major() == have.Major() && want.Minor() > have.Minor()) {
		return refuse(CodeVersion, "this machine has Kubernetes %s, newer than the server's %s: upgrade the servers first, or install the servers' release here",
			logged(machine), server)
	}
	return nil
}

func checkSettings(cluster membership.Settings, own *membership.Settings) error {
	if own == nil {
		return nil
	}
	all := cluster.Conflicts(*own)
	if i := slices.IndexFunc(all, func(c membership.Conflict) bool { return c.Key == membership.KeyDatastore }); i >= 0 {
		return refuse(CodeSettings, "%v: all servers of a cluster keep its state in one place; give this machine the cairn.datastore that the others have, or none if they have none", all[i])
	}
	if len(all) > 0 {
		return refuse(CodeSettings, "%v: settings of a cluster are fixed when it begins; remove the key here, or give it the cluster's value", all[0])
	}
	return nil
}

// material makes what the machine gets; it changes nothing.
func (s *Server) material(ctx context.Context, role membership.Role, node string, csr []byte, settings membership.Settings) (*answer, error) {
	servers, err := s.servers(ctx)
	if err != nil {
		return nil, err
	}
	a := &answer{Settings: settings, Servers: servers, Files: make(map[string][]byte)}
	if a.Certificate, err = s.certificate(role, node, csr); err != nil {
		return nil, err
	}
	files, optional := bundleFor(role)
	for _, f := range files {
		path := filepath.Join(s.TLSDir, f.name)
		if f.name == encryptionName {
			path = s.EncryptionFile
		}
		data, err := os.ReadFile(path)
		if optional(f) {
			if _, damaged := cert.ParseCertsPEM(data); err != nil || damaged != nil {
				continue
			}
		} else if err != nil {
			return nil, fmt.Errorf("read what a %s gets: %w", role, err)
		}
		a.Files[f.name] = data
	}
	if role != membership.Agent && s.StorePeers != nil {
		if a.StorePeers, err = s.StorePeers(ctx); err != nil {
			return nil, fmt.Errorf("ask for the store's members: %w", err)
		}
	}
	return a, nil
}

// certificate signs the machine's request: for an agent the bootstrap certificate, else the store's.
func (s *Server) certificate(role membership.Role, node string, der []byte) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuse(CodeRequest, "the certificate request cannot be read: %v", err)
	}
	if err := checkKey(csr); err != nil {
		return nil, refuse(CodeRequest, "the certificate request: %v", err)
	}
	o := s.PKI()
	authority, r := pki.StoreCA, pki.StoreRequest(node)
	r.Life = o.Life
	switch role {
	case membership.Witness:
		r = pki.StoreWitnessRequest(node)
		r.Life = o.Life
	case membership.Agent:
		authority, r = pki.ClientCA, pki.ClientRequest(BootstrapUserPrefix+node, BootstrapGroup)
		r.Life = bootstrapLife
	}
	r.Now, r.Floor = o.Now, o.Floor
	return pki.SignRequest(s.TLSDir, authority, csr, r)
}

// checkKey refuses keys that are too weak, before anything is signed.
func checkKey(csr *x509.CertificateRequest) error {
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 || key.N.BitLen() > 8192 {
			return fmt.Errorf("an RSA key of %d bits", key.N.BitLen())
		}
	default:
		return fmt.Errorf("a key of type %T", key)
	}
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("its signature: %w", err)
	}
	return nil
}

// servers returns host:port of all apiservers. Right after the first start of a cluster it may be empty; the machine
// knows the one that it asks.
func (s *Server) servers(ctx context.Context) ([]string, error) {
	l, err := s.Client.DiscoveryV1().EndpointSlices(corev1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	var all []netip.AddrPort
	for _, slice := range l.Items {
		port := httpsPort(slice.Ports)
		if port == 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					all = append(all, netip.AddrPortFrom(a, port))
				}
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return hostPorts(slices.Compact(all)), nil
}

func httpsPort(ports []discoveryv1.EndpointPort) uint16 {
	for _, p := range ports {
		if p.Name != nil && *p.Name == "https" && p.Port != nil {
			return uint16(*p.Port)
		}
	}
	return 0
}
