// Package token reads and makes the texts that let a machine join a cluster.
//
// A token is K10, the SHA-256 of the cluster's server-ca in hex, two colons, an id, a colon and a secret. A text without
// the K10 is a secret alone: a machine that has no more than that cannot tell beforehand whose server it talks to.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"unicode"
)

const (
	prefix = "K10"
	// maxSecret bounds a secret, in bytes.
	maxSecret = 512
	// secretBytes gives 160 bits, which nobody guesses and which are 32 characters.
	secretBytes = 20
	idLength    = 6
)

// Ids of the tokens that each cluster has.
const (
	Server = "server" // admits servers, agents and witnesses
	Agent  = "agent"  // admits agents
	// Config is the token in the first server's own configuration: its secret was chosen by a person.
	Config = "config"
)

var validID = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// ValidID reports whether id can be a token's: lower-case letters, digits and dashes inside, at most 32.
func ValidID(id string) bool { return validID.MatchString(id) }

// Token is what a machine shows to join.
type Token struct {
	// Pin is the SHA-256 of the DER form of the cluster's server-ca, in lower-case hex. Empty: a plain secret.
	Pin    string
	ID     string // empty for a plain secret
	Secret string
}

// Parse reads a token. What begins as K10 must be whole: half a token that was taken for a plain secret would be refused
// later, and with a worse message. The error never holds the secret.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, errors.New("the token is empty")
	}
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		if err := checkSecret(text); err != nil {
			return Token{}, err
		}
		return Token{Secret: text}, nil
	}
	pin, rest, ok := strings.Cut(rest, "::")
	if !ok {
		return Token{}, errors.New("the token begins with K10 but has no \"::\" after the CA's hash: copy it again, whole")
	}
	pin = strings.ToLower(pin)
	if b, err := hex.DecodeString(pin); err != nil || len(b) != sha256.Size {
		return Token{}, fmt.Errorf("the token's CA hash has %d characters or others than 0-9a-f; want %d: copy it again, whole", len(pin), 2*sha256.Size)
	}
	id, secret, ok := strings.Cut(rest, ":")
	if !ok {
		return Token{}, errors.New("the token has no \":SECRET\" after its id: copy it again, whole")
	}
	if !ValidID(id) {
		return Token{}, errors.New("the token's id is not made of a-z, 0-9 and dashes: copy it again, whole")
	}
	if err := checkSecret(secret); err != nil {
		return Token{}, err
	}
	return Token{Pin: pin, ID: id, Secret: secret}, nil
}

func checkSecret(secret string) error {
	switch {
	case secret == "":
		return errors.New("the token's secret is empty: copy it again, whole")
	case len(secret) > maxSecret:
		return fmt.Errorf("the token's secret is longer than %d bytes", maxSecret)
	case strings.ContainsFunc(secret, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return errors.New("the token's secret holds spaces or characters that cannot be printed")
	}
	return nil
}

// Plain reports whether the token is a secret alone.
func (t Token) Plain() bool { return t.Pin == "" }

// String returns the text that Parse reads. It holds the secret.
func (t Token) String() string {
	if t.Plain() {
		return t.Secret
	}
	return prefix + t.Pin + "::" + t.ID + ":" + t.Secret
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	if t.Plain() {
		return slog.StringValue("plain secret")
	}
	return slog.StringValue(t.ID)
}

// Pin returns what tokens of the cluster hold whose server-ca has this DER form.
func Pin(caDER []byte) string {
	sum := sha256.Sum256(caDER)
	return hex.EncodeToString(sum[:])
}

// NewSecret returns a secret that cannot be guessed.
func NewSecret() (string, error) { return random(secretBytes) }

// NewID returns an id of six characters. It is none of the ids that each cluster has.
func NewID() (string, error) {
	for {
		id, err := random(idLength)
		if err != nil {
			return "", err
		}
		if id = id[:idLength]; id != Server && id != Agent && id != Config {
			return id, nil
		}
	}
}

// random returns n random bytes in lower-case base32: letters and digits that survive being read out.
func random(n int) (string, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)), nil
}
