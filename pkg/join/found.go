package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

// FoundOptions say what the server that began a cluster puts into it.
type FoundOptions struct {
	Token    string // cairn.token of its configuration; may be empty
	Settings membership.Settings
	Node     string
	Identity string // see Identity
	// CAFile is the server-ca's certificate, to notice that Token names another cluster's.
	CAFile string
	Log    *slog.Logger // nil: none
}

// Found creates what machines need to join: the tokens server and agent with new secrets, the token of the configuration,
// the cluster's settings, and the record of the own name. What is there stays, but the token of the configuration follows
// the configuration. The founding server calls it at each start of its control plane; it may run any number of times.
func Found(ctx context.Context, client kubernetes.Interface, f FoundOptions) error {
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	if err := ensureNamespace(ctx, client); err != nil {
		return err
	}
	if err := createSettings(ctx, client, f.Settings); err != nil {
		return err
	}
	for id, role := range map[string]membership.Role{token.Server: membership.Server, token.Agent: membership.Agent} {
		if err := createBuiltIn(ctx, client, id, role); err != nil {
			return err
		}
	}
	if err := f.keepConfigToken(ctx, client); err != nil {
		return err
	}
	return Record(ctx, client, f.Node, f.Identity, membership.Server)
}

// createBuiltIn makes a token that each cluster has, unless it is there.
func createBuiltIn(ctx context.Context, client kubernetes.Interface, id string, role membership.Role) error {
	return change(ctx, client, TokenPrefix+id, func(s *corev1.Secret) (*corev1.Secret, error) {
		if s != nil {
			return nil, errUnchanged
		}
		return newToken(id, TokenRequest{Role: string(role), Description: "made with the cluster"}, time.Now())
	})
}

// keepConfigToken makes the token config that of the configuration, unless the configuration holds another token: that
// one goes on to be what it is, and ends when it is revoked or expires.
func (f FoundOptions) keepConfigToken(ctx context.Context, client kubernetes.Interface) error {
	t, problem := token.Parse(f.Token)
	if problem != nil {
		if f.Token != "" { // no reason to keep the cluster from starting
			f.Log.Error("cairn.token of this server's configuration is of no use, so no machine can join with it", "error", problem)
		}
		err := client.CoreV1().Secrets(Namespace).Delete(ctx, TokenPrefix+token.Config, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove token %s: %w", token.Config, err)
		}
		return nil
	}
	f.warnPin(t)
	return change(ctx, client, TokenPrefix+token.Config, func(s *corev1.Secret) (*corev1.Secret, error) {
		instead, err := insteadOf(ctx, client, t, s)
		if err != nil {
			return nil, err
		}
		want := newSecret(TokenPrefix+token.Config, TokenType)
		if s != nil {
			want.ObjectMeta = s.ObjectMeta
		}
		want.Data[keyCreated] = []byte(stamp(time.Now()))
		if instead == "" {
			want.Data[keySecret] = []byte(t.Secret)
			want.Data[keyRole] = []byte(membership.Server)
			want.Data[keyDescription] = []byte("cairn.token of the first server's configuration")
		} else {
			f.Log.Warn("cairn.token of this server's configuration is another token, and makes none of its own: machines join with it as that one lets them",
				"token", instead)
			want.Data[keyInstead] = []byte(instead)
			want.Data[keySecretHash] = []byte(secretHash(t.Secret))
			want.Data[keyDescription] = []byte("cairn.token of the first server's configuration is the token " + instead)
		}
		if s != nil && sameToken(s.Data, want.Data) {
			return nil, errUnchanged
		}
		return want, nil
	})
}

// insteadOf returns the id of the token that the configuration's text belongs to, or "" when it is the configuration's
// own. s is the Secret of the token config, nil for none.
//
// A whole token has been printed by the cluster, so another id than config names a token that exists, or one that was
// revoked. A secret alone is looked for among the tokens, and what was found is remembered: the token config must not come
// to life with a secret whose own token was revoked.
func insteadOf(ctx context.Context, client kubernetes.Interface, t token.Token, s *corev1.Secret) (string, error) {
	if !t.Plain() && t.ID != token.Config {
		return t.ID, nil
	}
	if s != nil && sameText(string(s.Data[keySecretHash]), secretHash(t.Secret)) {
		return string(s.Data[keyInstead]), nil
	}
	secrets, err := listSecrets(ctx, client, TokenType)
	if err != nil {
		return "", err
	}
	for i := range secrets {
		if r := readToken(&secrets[i]); r.ID != token.Config && r.secret != "" && sameText(r.secret, t.Secret) {
			return r.ID, nil
		}
	}
	return "", nil
}

func secretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// sameToken compares all but the time.
func sameToken(have, want map[string][]byte) bool {
	same := func(from map[string][]byte) map[string][]byte {
		to := maps.Clone(from)
		delete(to, keyCreated)
		return to
	}
	return maps.EqualFunc(same(have), same(want), bytes.Equal)
}

// warnPin says so when machines with the same token would refuse this cluster.
func (f FoundOptions) warnPin(t token.Token) {
	if t.Plain() || f.CAFile == "" {
		return
	}
	if pin, err := pinOf(f.CAFile); err == nil && pin != t.Pin {
		f.Log.Warn("cairn.token names another cluster's CA, or one that was replaced: no machine can join this cluster with it", "token", t.Pin, "ca", pin)
	}
}
