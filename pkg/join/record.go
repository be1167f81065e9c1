package join

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/membership"
)

// Keys of a node's Secret beside keyRole. Lists are separated by spaces.
const (
	keyIdentity  = "identity"  // SHA-256 of the public key, hex
	keyJoined    = "joined"    // RFC 3339
	keyAddresses = "addresses" // checked by a server
	keyClientKey = "clientkey" // SHA-256 of public keys, hex, the newest first
	keyHeard     = "heard"     // see record.heard

	keyAuthorities = "authorities" // see NodeRecord.Authorities
)

// maxClientKeys is how many of a node's client keys count: the one in use, its successor while it is being obtained, and
// one whose certificate was lost on its way.
const maxClientKeys = 3

// forgetAfter is how long a machine that joined may take to become a member of the store.
const forgetAfter = 10 * time.Minute

// NodeRecord says whose the name of a node is.
type NodeRecord struct {
	Name     string
	Identity string // SHA-256 of the machine's public key, hex
	Role     membership.Role
	Joined   time.Time // when the machine got the name last
	// Addresses are those that a server found to be the node's. What the node writes into its own Node is not.
	Addresses []netip.Addr
	// ClientKeys are SHA-256 of the public keys, in hex, that the cluster certified as the node's client keys: the newest
	// first, at most three.
	ClientKeys []string
	// Authorities says how far the machine has followed while the cluster's authorities are replaced. Of a server it is what
	// that one says of itself; of an agent or a witness the BundleHash of the server-ca that it trusts, once its certificates
	// are of the authorities that sign.
	Authorities string
}

// record is a NodeRecord with what only this package looks at.
type record struct {
	NodeRecord
	heard   string // resourceVersion of the node's Lease when the machine got the name; empty: there was none
	version string // of the Secret
}

// ReadNode reads the Secret of a node's name. It returns nil for nil, and an error for a Secret of another type.
func ReadNode(s *corev1.Secret) (*NodeRecord, error) {
	r, err := recordIn(s)
	if r == nil || err != nil {
		return nil, err
	}
	return &r.NodeRecord, nil
}

func recordIn(s *corev1.Secret) (*record, error) {
	if s == nil {
		return nil, nil
	}
	if s.Type != NodeType {
		return nil, fmt.Errorf("secret %s/%s has type %s, not %s: delete it", s.Namespace, s.Name, s.Type, NodeType)
	}
	joined, err := time.Parse(time.RFC3339, string(s.Data[keyJoined]))
	if err != nil {
		joined = s.CreationTimestamp.Time
	}
	var addresses []netip.Addr
	for _, text := range strings.Fields(string(s.Data[keyAddresses])) {
		if a, err := netip.ParseAddr(text); err == nil {
			addresses = append(addresses, a)
		}
	}
	var keys []string
	if all := strings.Fields(string(s.Data[keyClientKey])); len(all) > 0 {
		keys = all[:min(len(all), maxClientKeys)]
	}
	return &record{
		NodeRecord: NodeRecord{
			Name: strings.TrimPrefix(s.Name, NodePrefix), Identity: string(s.Data[keyIdentity]),
			Role: membership.Role(s.Data[keyRole]), Joined: joined, Addresses: addresses, ClientKeys: keys,
			Authorities: string(s.Data[keyAuthorities]),
		},
		heard: string(s.Data[keyHeard]), version: s.ResourceVersion,
	}, nil
}

// fill writes the whole record into s, or into a new Secret for nil.
func (r record) fill(s *corev1.Secret) *corev1.Secret {
	if s == nil {
		s = newSecret(NodePrefix+r.Name, NodeType)
	}
	s.Data = map[string][]byte{
		keyIdentity: []byte(r.Identity), keyRole: []byte(r.Role), keyJoined: []byte(stamp(r.Joined)),
	}
	for key, text := range map[string]string{
		keyAddresses: addressText(r.Addresses), keyClientKey: strings.Join(r.ClientKeys, " "), keyHeard: r.heard,
		keyAuthorities: r.Authorities,
	} {
		if text != "" {
			s.Data[key] = []byte(text)
		}
	}
	return s
}

// keep takes from the record before what goes on to be true of the same machine. Which authorities it trusts it says anew.
func (r record) keep(have *record) record {
	if have == nil || have.Identity != r.Identity {
		return r
	}
	r.ClientKeys = have.ClientKeys
	if len(r.Addresses) == 0 {
		r.Addresses = have.Addresses
	}
	return r
}

// plainAddresses returns the addresses in their one form, sorted, each once.
func plainAddresses(all []netip.Addr) []netip.Addr {
	var plain []netip.Addr
	for _, a := range all {
		if a.IsValid() {
			plain = append(plain, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(plain, netip.Addr.Compare)
	return slices.Compact(plain)
}

func addressText(all []netip.Addr) string {
	var texts []string
	for _, a := range plainAddresses(all) {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " ")
}

// SetAddresses records the addresses that a server found to be the node's. The error is the apiserver's NotFound when no
// machine has the name.
func SetAddresses(ctx context.Context, client kubernetes.Interface, node string, addresses []netip.Addr) error {
	return edit(ctx, client, node, func(r *record) bool {
		all := plainAddresses(addresses)
		same := slices.Equal(all, plainAddresses(r.Addresses))
		r.Addresses = all
		return !same
	})
}

// AddClientKey records the SHA-256, in hex, of a public key that is about to be certified as the node's. The oldest of
// four is forgotten. The error is the apiserver's NotFound when no machine has the name.
func AddClientKey(ctx context.Context, client kubernetes.Interface, node, key string) error {
	if key == "" || strings.ContainsAny(key, " \t\n") {
		return fmt.Errorf("client key of node %s: %q is no hash", node, key)
	}
	return edit(ctx, client, node, func(r *record) bool {
		if len(r.ClientKeys) > 0 && r.ClientKeys[0] == key {
			return false
		}
		all := append([]string{key}, slices.DeleteFunc(slices.Clone(r.ClientKeys), func(k string) bool { return k == key })...)
		r.ClientKeys = all[:min(len(all), maxClientKeys)]
		return true
	})
}

// SetAuthorities records how far the node's machine has followed while the cluster's authorities are replaced; see
// NodeRecord. The error is the apiserver's NotFound when no machine has the name.
func SetAuthorities(ctx context.Context, client kubernetes.Interface, node, text string) error {
	return edit(ctx, client, node, func(r *record) bool {
		same := r.Authorities == text
		r.Authorities = text
		return !same
	})
}

// edit changes a record that is there, if apply says that it changed it.
func edit(ctx context.Context, client kubernetes.Interface, node string, apply func(*record) bool) error {
	return change(ctx, client, NodePrefix+node, func(s *corev1.Secret) (*corev1.Secret, error) {
		r, err := recordIn(s)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return nil, fmt.Errorf("record of node %s: %w", node, apierrors.NewNotFound(corev1.Resource("secrets"), NodePrefix+node))
		}
		if !apply(r) {
			return nil, errUnchanged
		}
		return r.fill(s), nil
	})
}

// Record writes that the own machine has its name. A server is free to do so, also when its name changed. What else is
// recorded of the machine stays.
func Record(ctx context.Context, client kubernetes.Interface, node, identity string, role membership.Role) error {
	return change(ctx, client, NodePrefix+node, func(s *corev1.Secret) (*corev1.Secret, error) {
		have, err := recordIn(s)
		if err != nil {
			return nil, err
		}
		if have != nil && have.Identity == identity && have.Role == role {
			return nil, errUnchanged
		}
		r := record{NodeRecord: NodeRecord{Name: node, Identity: identity, Role: role, Joined: time.Now()}}
		return r.keep(have).fill(s), nil
	})
}

// ListNodes returns who joined the cluster, by name: servers, agents and witnesses, alive or not.
func ListNodes(ctx context.Context, client kubernetes.Interface) ([]NodeRecord, error) {
	records, err := listRecords(ctx, client)
	if err != nil {
		return nil, err
	}
	all := make([]NodeRecord, 0, len(records))
	for _, r := range records {
		all = append(all, r.NodeRecord)
	}
	return all, nil
}

func listRecords(ctx context.Context, client kubernetes.Interface) ([]record, error) {
	secrets, err := listSecrets(ctx, client, NodeType)
	if err != nil {
		return nil, err
	}
	all := make([]record, 0, len(secrets))
	for i := range secrets {
		r, err := recordIn(&secrets[i])
		if err != nil {
			return nil, err
		}
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b record) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// getRecord returns who has the name, nil for nobody.
func getRecord(ctx context.Context, client kubernetes.Interface, name string) (*record, error) {
	s, err := client.CoreV1().Secrets(Namespace).Get(ctx, NodePrefix+name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of node %s: %w", name, err)
	}
	return recordIn(s)
}

// Forget removes a node from those that joined: its machine needs a token to come back. A name that is not known is no
// error.
func Forget(ctx context.Context, client kubernetes.Interface, name string) error {
	err := client.CoreV1().Secrets(Namespace).Delete(ctx, NodePrefix+name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("forget node %s: %w", name, err)
	}
	return nil
}

// ForgetWitnesses removes the witnesses that are no members of the store any more: they have no Node whose deletion would
// end their records, and without one they get no further certificate. One that joined less than ten minutes ago may still
// be on its way. members are the names of all members, online or not.
func ForgetWitnesses(ctx context.Context, client kubernetes.Interface, members []string) error {
	return forgetWitnesses(ctx, client, members, time.Now())
}

func forgetWitnesses(ctx context.Context, client kubernetes.Interface, members []string, now time.Time) error {
	if len(members) == 0 {
		return errors.New("forget witnesses: a store without members cannot be")
	}
	secrets, err := listSecrets(ctx, client, NodeType)
	if err != nil {
		return err
	}
	for i := range secrets {
		s := &secrets[i]
		r, err := recordIn(s)
		if err != nil {
			return err
		}
		if r.Role != membership.Witness || slices.Contains(members, r.Name) || now.Sub(r.Joined) < forgetAfter {
			continue
		}
		// One that joins again at this moment has another version.
		err = client.CoreV1().Secrets(Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("forget witness %s: %w", r.Name, err)
		}
	}
	return nil
}
