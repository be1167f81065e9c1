package join

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"

	"github.com/cairn-os/cairn/pkg/token"
)

// Cost of stretching a secret that a person chose: 32 MiB for some 0.1 s (a second on a small ARM board). Whoever makes
// a machine talk to a false server pays it for each guess.
const (
	scryptN = 1 << 15
	scryptR = 8
	scryptP = 1
)

// Labels keep keys and signatures of one purpose from serving another.
const (
	labelRequest = "cairn join v1 request"
	labelAnswer  = "cairn join v1 answer"
	labelStretch = "cairn join v1 stretch"
	labelJoin    = "cairn join v1 identity"
	labelRenew   = "cairn renew v1 identity"
)

var errSealed = errors.New("sealed with another secret, or changed on its way")

// chosen reports whether the secret of the token with that id was chosen by a person: a plain one, or the same with a pin.
func chosen(id string) bool { return id == "" || id == token.Config }

// stretcher turns a token's secret into key material. Chosen secrets are stretched, one at a time for the memory that it
// takes, and remembered: it is too slow to do for each request. Methods may be called at any time.
type stretcher struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte][]byte
}

// maxStretched bounds the memory of a stretcher; a cluster has one chosen secret.
const maxStretched = 16

// master returns the key material of a secret for the cluster whose CA has the hash ca.
func (s *stretcher) master(id, secret string, ca [sha256.Size]byte) ([]byte, error) {
	if !chosen(id) {
		return []byte(secret), nil
	}
	salt := append([]byte(labelStretch), ca[:]...)
	h := sha256.New()
	h.Write(salt)
	h.Write([]byte(secret))
	name := [sha256.Size]byte(h.Sum(nil))
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := s.known[name]; key != nil {
		return key, nil
	}
	key, err := scrypt.Key([]byte(secret), salt, scryptN, scryptR, scryptP, 32)
	if err != nil {
		return nil, fmt.Errorf("stretch token: %w", err)
	}
	if s.known == nil || len(s.known) >= maxStretched {
		s.known = make(map[[sha256.Size]byte][]byte)
	}
	s.known[name] = key
	return key, nil
}

// sealer seals what goes one way in one exchange.
type sealer struct {
	master []byte
	salt   []byte // of the request; for the answer, both salts
	label  string
	ca     [sha256.Size]byte // of the CA that both ends believe in
	id     string
}

// keys derives the key of the AEAD, a commitment to it, and the associated data.
func (s sealer) keys() (aead cipher.AEAD, commitment, data []byte, err error) {
	const commitmentSize = sha256.Size
	key, err := hkdf.Key(sha256.New, s.master, s.salt, s.label, chacha20poly1305.KeySize+commitmentSize)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("derive key: %w", err)
	}
	if aead, err = chacha20poly1305.NewX(key[:chacha20poly1305.KeySize]); err != nil {
		return nil, nil, nil, fmt.Errorf("derive key: %w", err)
	}
	// Label and hash have one length each, so the parts cannot be shifted against each other.
	data = append([]byte(s.label), s.ca[:]...)
	return aead, key[chacha20poly1305.KeySize:], append(data, s.id...), nil
}

// seal returns the commitment, a nonce and the ciphertext. Without the commitment, one message could be made that opens
// under thousands of keys: each request would be as many guesses at a chosen secret.
func (s sealer) seal(plain []byte) ([]byte, error) {
	aead, commitment, data, err := s.keys()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return aead.Seal(append(commitment, nonce...), nonce, plain, data), nil
}

// open fails with errSealed unless the other end had the same secret, salt and CA. It compares in constant time.
func (s sealer) open(sealed []byte) ([]byte, error) {
	aead, commitment, data, err := s.keys()
	if err != nil {
		return nil, err
	}
	begin := len(commitment) + chacha20poly1305.NonceSizeX
	if len(sealed) < begin || subtle.ConstantTimeCompare(sealed[:len(commitment)], commitment) != 1 {
		return nil, errSealed
	}
	plain, err := aead.Open(nil, sealed[len(commitment):begin], sealed[begin:], data)
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// answering returns the sealer of the answer to what s sealed: bound to both ends' salts, so that no answer fits another
// request.
func (s sealer) answering(salt []byte) sealer {
	s.salt = append(append([]byte(nil), s.salt...), salt...)
	s.label = labelAnswer
	return s
}

func newSalt() ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("salt: %w", err)
	}
	return salt, nil
}
