package join

import (
	"cmp"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

// Keys of a token's Secret.
const (
	keySecret      = "secret"
	keyRole        = "role"
	keyDescription = "description"
	keyCreated     = "created"
	keyExpires     = "expires" // RFC 3339; absent: never
	keyOnce        = "once"    // "true"
	keyUsedBy      = "used-by" // hash of the identity
	keyUsedNode    = "used-node"
	keyUsedRole    = "used-role"
	keyUsedAt      = "used-at"
	// The configuration's token when its text is that of another token: it has no secret then.
	keyInstead    = "instead"     // id of the other one
	keySecretHash = "secret-hash" // SHA-256 of the secret, hex
)

// onceGrace is how long the machine that used a one-time token may repeat its request: the answer can be lost.
const onceGrace = 10 * time.Minute

// TokenInfo is a token without its secret.
type TokenInfo struct {
	ID          string
	Role        string // server admits servers, agents and witnesses; agent admits agents
	Description string
	Created     time.Time
	Expires     time.Time // zero: never
	Once        bool
	UsedBy      string    // node that used a one-time token; empty: none yet
	UsedAt      time.Time // zero: not used
}

// TokenRequest says what a new token is to be.
type TokenRequest struct {
	Role        string        // "server" or "agent"; empty: agent
	TTL         time.Duration // 0: it never expires
	Once        bool
	Description string
	CAFile      string // the server-ca's certificate, which the text names
}

// tokenRecord is a token as the cluster keeps it.
type tokenRecord struct {
	TokenInfo
	secret  string // empty: it opens nothing
	usedBy  use    // zero: not used
	instead string // see keyInstead
}

// use is what a one-time token is used for. The identity is not enough: its file could be copied to many machines.
type use struct {
	identity, node string
	role           membership.Role
}

func readToken(s *corev1.Secret) tokenRecord {
	get := func(key string) string { return string(s.Data[key]) }
	date := func(key string) time.Time {
		t, err := time.Parse(time.RFC3339, get(key))
		if err != nil {
			return time.Time{}
		}
		return t
	}
	r := tokenRecord{
		TokenInfo: TokenInfo{
			ID: strings.TrimPrefix(s.Name, TokenPrefix), Role: get(keyRole), Description: get(keyDescription),
			Created: date(keyCreated), Expires: date(keyExpires), Once: get(keyOnce) == "true",
			UsedBy: get(keyUsedNode), UsedAt: date(keyUsedAt),
		},
		secret: get(keySecret), instead: get(keyInstead),
		usedBy: use{get(keyUsedBy), get(keyUsedNode), membership.Role(get(keyUsedRole))},
	}
	if r.Created.IsZero() {
		r.Created = s.CreationTimestamp.Time
	}
	if get(keyExpires) != "" && r.Expires.IsZero() {
		r.Expires = time.Unix(0, 0) // unreadable, so expired: somebody wanted it to end
	}
	return r
}

func (r tokenRecord) expired(now time.Time) bool {
	return !r.Expires.IsZero() && !now.Before(r.Expires)
}

// admits reports whether the token lets a machine of that role in.
func (r tokenRecord) admits(role membership.Role) bool {
	return r.Role == string(membership.Server) || (r.Role == string(membership.Agent) && role == membership.Agent)
}

// used returns a Refusal when the one-time token was used for something else, or too long ago.
func (r tokenRecord) used(by use, now time.Time) error {
	if !r.Once || r.usedBy.identity == "" {
		return nil
	}
	if r.usedBy == by && now.Sub(r.UsedAt) < onceGrace {
		return nil
	}
	return refuse(CodeUsed, "the token %s could be used once, and node %s used it at %s: create another with \"cairnctl token create\"",
		r.ID, r.UsedBy, stamp(r.UsedAt))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// consume marks a one-time token as used by the machine, which must be the first.
func consume(ctx context.Context, client kubernetes.Interface, id string, by use, now time.Time) error {
	return change(ctx, client, TokenPrefix+id, func(s *corev1.Secret) (*corev1.Secret, error) {
		if s == nil || s.Type != TokenType {
			return nil, refuseToken(id)
		}
		r := readToken(s)
		if err := r.used(by, now); err != nil {
			return nil, err
		}
		if r.usedBy.identity != "" {
			return nil, errUnchanged // a repetition; the time stays that of the first
		}
		s.Data[keyUsedBy] = []byte(by.identity)
		s.Data[keyUsedNode] = []byte(by.node)
		s.Data[keyUsedRole] = []byte(by.role)
		s.Data[keyUsedAt] = []byte(stamp(now))
		return s, nil
	})
}

// ListTokens returns the cluster's tokens by their ids.
func ListTokens(ctx context.Context, client kubernetes.Interface) ([]TokenInfo, error) {
	secrets, err := listSecrets(ctx, client, TokenType)
	if err != nil {
		return nil, err
	}
	all := make([]TokenInfo, 0, len(secrets))
	for i := range secrets {
		all = append(all, readToken(&secrets[i]).TokenInfo)
	}
	slices.SortFunc(all, func(a, b TokenInfo) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// CreateToken makes a token and returns its text.
func CreateToken(ctx context.Context, client kubernetes.Interface, r TokenRequest) (text string, info TokenInfo, err error) {
	if r.Role == "" {
		r.Role = string(membership.Agent)
	}
	if r.Role != string(membership.Agent) && r.Role != string(membership.Server) {
		return "", info, refuse(CodeRole, "a token's role is server or agent, not %q: that of a server admits witnesses as well", r.Role)
	}
	if r.TTL < 0 {
		return "", info, refuse(CodeExpired, "a token cannot expire %v ago", -r.TTL)
	}
	pin, err := pinOf(r.CAFile)
	if err != nil {
		return "", info, err
	}
	for range conflictTries {
		id, err := token.NewID()
		if err != nil {
			return "", info, err
		}
		s, err := newToken(id, r, time.Now())
		if err != nil {
			return "", info, err
		}
		_, err = client.CoreV1().Secrets(Namespace).Create(ctx, s, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return "", info, fmt.Errorf("create token: %w", err)
		}
		made := readToken(s)
		return token.Token{Pin: pin, ID: id, Secret: made.secret}.String(), made.TokenInfo, nil
	}
	return "", info, errors.New("create token: no free id found")
}

// newToken is the Secret of a token whose secret is new.
func newToken(id string, r TokenRequest, now time.Time) (*corev1.Secret, error) {
	secret, err := token.NewSecret()
	if err != nil {
		return nil, err
	}
	s := newSecret(TokenPrefix+id, TokenType)
	s.Data[keySecret] = []byte(secret)
	s.Data[keyRole] = []byte(r.Role)
	s.Data[keyCreated] = []byte(stamp(now))
	if r.Description != "" {
		s.Data[keyDescription] = []byte(r.Description)
	}
	if r.TTL > 0 {
		s.Data[keyExpires] = []byte(stamp(now.Add(r.TTL)))
	}
	if r.Once {
		s.Data[keyOnce] = []byte("true")
	}
	return s, nil
}

// RevokeToken ends a token. Nodes that joined by it stay. Of the tokens that each cluster has, the founding server makes
// new ones when its control plane starts next; that of its configuration ends there alone.
func RevokeToken(ctx context.Context, client kubernetes.Interface, id string) error {
	if id == token.Config {
		return refuse(CodeToken, "the token config is cairn.token of the first server's configuration: change or remove it there")
	}
	if _, err := getToken(ctx, client, id); err != nil {
		return err
	}
	err := client.CoreV1().Secrets(Namespace).Delete(ctx, TokenPrefix+id, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}

// TokenText returns the text of a token, which names the CA in caFile. It holds the secret.
func TokenText(ctx context.Context, client kubernetes.Interface, id, caFile string) (string, error) {
	r, err := getToken(ctx, client, id)
	if err != nil {
		return "", err
	}
	if r.instead != "" {
		return "", refuse(CodeToken, "cairn.token of the first server's configuration is the token %s: see \"cairnctl token\" for that one", r.instead)
	}
	if r.secret == "" {
		return "", refuse(CodeToken, "the token %s has no secret: revoke it and create another", id)
	}
	pin, err := pinOf(caFile)
	if err != nil {
		return "", err
	}
	return token.Token{Pin: pin, ID: id, Secret: r.secret}.String(), nil
}

func getToken(ctx context.Context, client kubernetes.Interface, id string) (tokenRecord, error) {
	if !token.ValidID(id) {
		return tokenRecord{}, refuse(CodeToken, "%q is no token's id", id)
	}
	s, err := client.CoreV1().Secrets(Namespace).Get(ctx, TokenPrefix+id, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || (err == nil && s.Type != TokenType) {
		return tokenRecord{}, refuse(CodeToken, "there is no token %s: see \"cairnctl token list\"", id)
	}
	if err != nil {
		return tokenRecord{}, fmt.Errorf("read token %s: %w", id, err)
	}
	return readToken(s), nil
}

// pinOf returns the hash of the first certificate in the file.
func pinOf(caFile string) (string, error) {
	data, err := os.ReadFile(caFile)
	if err != nil {
		return "", fmt.Errorf("read the cluster's CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", fmt.Errorf("read the cluster's CA: %s holds no certificate", caFile)
	}
	return token.Pin(block.Bytes), nil
}
