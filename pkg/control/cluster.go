package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/pki"
	storeadmin "github.com/cairn-os/cairn/pkg/store/admin"
)

const (
	// clusterTime bounds an answer about the cluster, and serverTime one about a server. A server that is cut off takes
	// all of its time.
	clusterTime = 10 * time.Second
	serverTime  = 3 * time.Second

	roleLabel = "node-role.kubernetes.io/"
)

// clusterView gathers the state of the cluster for the operator.
type clusterView struct {
	node   string
	port   int
	tls    string // directory of the certificates
	client kubernetes.Interface
	config *rest.Config              // of the own apiserver; others take the same credentials
	leader func() string             // name of the node whose controllers are at work
	store  func() *storeadmin.Client // returns nil when there is no store on this machine
	// rotation tells how far a replacement of the authorities is; nil: nobody knows.
	rotation func(context.Context) (admin.Rotation, error)
	now      func() time.Time
}

// look asks all that can tell something. What fails is told beside what is known: an operator looks when things fail.
func (v *clusterView) look(ctx context.Context) admin.Cluster {
	ctx, cancel := context.WithTimeout(ctx, clusterTime)
	defer cancel()
	c := admin.Cluster{Nodes: []admin.Node{}, Servers: []admin.Server{}, Certificates: []admin.Certificate{}, Controllers: v.leader()}
	problem := func(what string, err error) {
		if err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("%s: %v", what, err))
		}
	}
	nodes, err := v.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	problem("nodes", err)
	if err == nil {
		for i := range nodes.Items {
			c.Nodes = append(c.Nodes, v.describe(&nodes.Items[i]))
		}
	}
	addresses, err := v.announced(ctx)
	problem("servers", err)
	var seen []admin.Certificate
	c.Servers, seen = v.servers(ctx, c.Nodes, addresses)
	own, err := v.certificates()
	problem("certificates", err)
	c.Certificates = append(append(c.Certificates, own...), seen...)
	slices.SortFunc(c.Certificates, func(a, b admin.Certificate) int { return a.Expires.Compare(b.Expires) })
	if v.rotation != nil {
		r, err := v.rotation(ctx)
		problem("replacement of the authorities", err)
		if r.ID != "" {
			c.Rotation = &r
		}
	}
	if store := v.store(); store != nil {
		defer store.Close()
		c.Store, err = store.Status(ctx)
		problem("store", err)
		c.Snapshot = c.Store.Snapshot
	}
	return c
}

func (v *clusterView) describe(n *corev1.Node) admin.Node {
	node := admin.Node{
		Name: n.Name, Version: n.Status.NodeInfo.OSImage, Kubelet: n.Status.NodeInfo.KubeletVersion,
		Age: v.now().Sub(n.CreationTimestamp.Time).Round(time.Second),
	}
	for label := range n.Labels {
		if role, ok := strings.CutPrefix(label, roleLabel); ok {
			node.Roles = append(node.Roles, role)
		}
	}
	slices.Sort(node.Roles)
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			node.Ready = condition.Status == corev1.ConditionTrue
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			node.Addresses = append(node.Addresses, a.Address)
		}
	}
	return node
}

// announced returns the host and port of all apiservers that say of themselves that they live.
func (v *clusterView) announced(ctx context.Context) ([]string, error) {
	slice, err := v.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	port := v.port
	if len(slice.Ports) > 0 && slice.Ports[0].Port != nil {
		port = int(*slice.Ports[0].Port)
	}
	var all []string
	for _, e := range slice.Endpoints {
		for _, a := range e.Addresses {
			all = append(all, net.JoinHostPort(a, strconv.Itoa(port)))
		}
	}
	return all, nil
}

// servers asks every server, those that do not announce themselves any more as well, all at the same time.
func (v *clusterView) servers(ctx context.Context, nodes []admin.Node, announced []string) ([]admin.Server, []admin.Certificate) {
	all := candidates(nodes, announced, v.port)
	found := make([]admin.Certificate, len(all))
	var asked sync.WaitGroup
	for i := range all {
		asked.Go(func() { found[i] = v.ask(ctx, &all[i]) })
	}
	asked.Wait()
	var certificates []admin.Certificate
	for i, c := range found {
		if c.Name != "" && all[i].Name != v.node { // the own one is among the files
			certificates = append(certificates, c)
		}
	}
	return all, certificates
}

// candidates joins the addresses announced with the nodes that have them, and with the nodes of servers that have none.
func candidates(nodes []admin.Node, announced []string, port int) []admin.Server {
	var all []admin.Server
	for _, address := range announced {
		host, _, _ := net.SplitHostPort(address)
		s := admin.Server{Address: address}
		for _, n := range nodes {
			if slices.Contains(n.Addresses, host) {
				s.Name = n.Name
			}
		}
		all = append(all, s)
	}
	for _, n := range nodes {
		known := slices.ContainsFunc(all, func(s admin.Server) bool { return s.Name == n.Name })
		if known || !slices.Contains(n.Roles, "control-plane") || len(n.Addresses) == 0 {
			continue
		}
		all = append(all, admin.Server{Name: n.Name, Address: net.JoinHostPort(n.Addresses[0], strconv.Itoa(port))})
	}
	slices.SortFunc(all, func(a, b admin.Server) int { return strings.Compare(a.Name+a.Address, b.Name+b.Address) })
	return all
}

// ask finds out whether the server answers, and with which version and certificate.
func (v *clusterView) ask(ctx context.Context, s *admin.Server) admin.Certificate {
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	s.Leader = s.Name != "" && s.Name == v.leader()
	var certificate admin.Certificate
	err := v.askReady(ctx, s, func(state *tls.ConnectionState) {
		if state == nil || len(state.PeerCertificates) == 0 {
			return
		}
		end := state.PeerCertificates[0].NotAfter
		certificate = admin.Certificate{Name: pki.APIServer, Node: s.Name, Expires: end, Left: end.Sub(v.now()).Round(time.Second)}
	})
	if s.Reachable = err == nil; !s.Reachable {
		s.Problem = err.Error()
	}
	return certificate
}

func (v *clusterView) askReady(ctx context.Context, s *admin.Server, saw func(*tls.ConnectionState)) error {
	config := rest.CopyConfig(v.config)
	config.Host = "https://" + s.Address
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	if _, err := get(ctx, client, config.Host+"/readyz", saw); err != nil {
		return err
	}
	body, err := get(ctx, client, config.Host+"/version", saw)
	if err != nil {
		return err
	}
	var info version.Info
	if err := json.Unmarshal(body, &info); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	s.Version = info.GitVersion
	return nil
}

func get(ctx context.Context, client *http.Client, url string, saw func(*tls.ConnectionState)) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if saw != nil {
		saw(resp.TLS)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return body, err
}

// certificates are those of this server's files.
func (v *clusterView) certificates() ([]admin.Certificate, error) {
	files, err := pki.Expiries(v.tls)
	var all []admin.Certificate
	for _, c := range files {
		all = append(all, admin.Certificate{
			Name: c.Name, Node: v.node, Issuer: v.issuer(c), Authority: c.Authority,
			Expires: c.NotAfter, Left: c.NotAfter.Sub(v.now()).Round(time.Second),
		})
	}
	return all, err
}

// issuer names the authority that signed the certificate, "" when the file has just been removed.
func (v *clusterView) issuer(c pki.Expiry) string {
	all, err := cert.CertsFromFile(pki.PairFile(v.tls, c.Name))
	if err != nil {
		all, err = cert.CertsFromFile(pki.CertFile(v.tls, c.Name))
	}
	if err != nil {
		return ""
	}
	return all[0].Issuer.CommonName
}

// allCertificates are the certificates, the authorities first, and behind them those that are trusted beside the ones that
// sign: while authorities are replaced there are two of each.
func (v *clusterView) allCertificates() ([]admin.Certificate, error) {
	all, err := v.certificates()
	for _, c := range slices.Clone(all) {
		if !c.Authority {
			continue
		}
		bundle, err := cert.CertsFromFile(pki.CertFile(v.tls, c.Name))
		if err != nil {
			return all, fmt.Errorf("authority %s: %w", c.Name, err)
		}
		for _, other := range bundle {
			if other.Subject.CommonName == c.Issuer {
				continue
			}
			all = append(all, admin.Certificate{
				Name: c.Name, Node: v.node, Issuer: other.Issuer.CommonName, Authority: true, Idle: true,
				Expires: other.NotAfter, Left: other.NotAfter.Sub(v.now()).Round(time.Second),
			})
		}
	}
	rank := func(c admin.Certificate) string {
		return fmt.Sprintf("%v %s %v", !c.Authority, c.Name, c.Idle)
	}
	slices.SortFunc(all, func(a, b admin.Certificate) int { return strings.Compare(rank(a), rank(b)) })
	return all, err
}
