package join

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/util/keyutil"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
)

// IdentityFile is the file of the machine's own key below dir, which is /var/lib/cairn.
func IdentityFile(dir string) string { return filepath.Join(dir, "node", "identity.pem") }

// Identity returns the hash by which the cluster knows the machine whose files are below dir.
func Identity(dir string) (string, error) { return identityIn(IdentityFile(dir)) }

// identityIn is the hash of the identity in a file.
func identityIn(path string) (string, error) {
	key, err := loadIdentity(path)
	if err != nil {
		return "", err
	}
	return identityHash(&key.PublicKey)
}

func identityHash(public *ecdsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("identity: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// publicDER is the form in which a machine names its identity.
func publicDER(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return der, nil
}

// errDamaged says that the file is there and holds no identity: a card that wears out, or a hand in it.
var errDamaged = errors.New("is damaged")

// loadIdentity reads the machine's key. The error wraps fs.ErrNotExist when there is none, and errDamaged when there is
// something else in its place. One of the disk, which wraps syscall.EIO, says nothing about the file yet: a bus that is
// reset, or a voltage that sinks, passes.
func loadIdentity(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("identity %s %w: it holds no key", path, errDamaged) // nothing of the file goes into messages
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("identity %s %w: not an ECDSA P-256 key", path, errDamaged)
	}
	return key, nil
}

// setAside moves a damaged identity out of the way. It is not destroyed: whoever has the cluster in mind may mend it.
func setAside(path string) error { return move(path, asideOf(path)) }

// move renames an identity durably, in its directory.
func move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if err := atomicfile.SyncDir(filepath.Dir(to)); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

func asideOf(path string) string { return path + ".damaged" }

// readings is how often the disk may fail to read an identity before that counts as lost.
const readings = 5

// readIdentity is loadIdentity with patience: it tells the machine's owner what is in the way, and takes a file for
// damaged that the disk does not read after some tries, half a minute in all.
func (o Options) readIdentity(ctx context.Context) error {
	wait := firstPause
	for n := 1; ; n++ {
		_, err := loadIdentity(IdentityFile(o.Dir))
		if !errors.Is(err, syscall.EIO) {
			return err
		}
		if n == readings {
			return fmt.Errorf("identity %s %w: %w", IdentityFile(o.Dir), errDamaged, err)
		}
		o.Log.Warn("join: the disk does not read the identity", "error", err, "again", wait)
		o.Status(fmt.Sprintf("the disk does not read this machine's %v (trying again in %v)", err, wait))
		if o.pause(ctx, wait) != nil {
			return err
		}
		wait = min(2*wait, maxPause)
	}
}

// bringBack puts the identity that was set aside in its place again when it proves to be the one that the machine joined
// with: the disk reads it again, or somebody mended it. It is one rename, which a cut leaves done or to be done. A server
// that made another meanwhile keeps that one, which its cluster knows.
func (o Options) bringBack(m *membership.Membership) {
	if m == nil || m.Identity == "" {
		return
	}
	path := IdentityFile(o.Dir)
	have, err := identityIn(path)
	if err == nil && (have == m.Identity || m.Role == membership.Server) {
		return
	}
	if kept, err := identityIn(asideOf(path)); err != nil || kept != m.Identity {
		return
	}
	if err := move(asideOf(path), path); err != nil {
		o.Log.Error("join: the identity that was set aside is good, and does not come back", "error", err)
		return
	}
	o.Log.Warn("join: the identity that was set aside is good, and is this machine's again", "file", path)
}

// ensureIdentity loads the machine's key, or makes one. A damaged file is not replaced here: the cluster knows the machine
// by it, and Options.mendIdentity decides.
func ensureIdentity(path string, write writeFile) (*ecdsa.PrivateKey, error) {
	key, err := loadIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = newKey(); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := write(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return key, nil
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// signed is a message of a machine that shows that it has the identity it names.
type signed struct {
	Body      []byte `json:"body"`
	Signature []byte `json:"signature"`
}

// digest hashes the parts, each with its length before it, so that no two lists of parts are the same message.
func digest(label string, parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range append([][]byte{[]byte(label)}, parts...) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum(nil)
}

// sign signs body for one purpose and one context.
func sign(key *ecdsa.PrivateKey, label string, context, body []byte) (signed, error) {
	signature, err := key.Sign(rand.Reader, digest(label, context, body), crypto.SHA256)
	if err != nil {
		return signed{}, fmt.Errorf("sign with the identity: %w", err)
	}
	return signed{Body: body, Signature: signature}, nil
}

// verify reports whether s was signed with the key whose PKIX form is public, and returns the key's hash.
func (s signed) verify(label string, context, public []byte) (hash string, ok bool) {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return "", false
	}
	key, isECDSA := parsed.(*ecdsa.PublicKey)
	if !isECDSA || key.Curve != elliptic.P256() {
		return "", false
	}
	hash, err = identityHash(key) // of its one DER form, not of what came
	if err != nil {
		return "", false
	}
	return hash, ecdsa.VerifyASN1(key, digest(label, context, s.Body), s.Signature)
}

// newRequest makes a key and the request of a certificate for it. The server decides what the certificate says.
func newRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "cairn"}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	return key, der, nil
}
