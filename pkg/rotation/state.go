package rotation

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

const (
	// secretType is the type of the Secret join.RotationName.
	secretType corev1.SecretType = "cairn-os.io/rotation"

	stateKey = "state.json"
	// maxState bounds what is read, in bytes. The five successors are some 10 kB.
	maxState = 128 << 10
)

// Stage is how far the rotation is. See the package's doc.
type Stage string

// The stages in their order.
const (
	trust  Stage = "trust"
	sign   Stage = "sign"
	retire Stage = "retire"
)

func stages() []Stage { return []Stage{trust, sign, retire} }

// Rank orders stages: from 1 for trust to 3 for retire, and 0 for what is none.
func (s Stage) Rank() int { return slices.Index(stages(), s) + 1 }

// next is the stage after s, which is not the last.
func (s Stage) next() Stage { return stages()[s.Rank()] }

// State is a rotation under way, as the Secret has it. It holds the keys of the authorities to come.
type State struct {
	ID    string    `json:"id"` // SHA-256 of the new server-ca's certificate, in hex: what tokens will begin with
	Stage Stage     `json:"stage"`
	Since time.Time `json:"since"` // of the stage
	Begun time.Time `json:"begun"`
	By    string    `json:"by"` // name of the server that was told to
	// Agreed is since when all who are waited for have come as far as the stage; zero while some have not.
	Agreed     time.Time       `json:"agreed,omitzero"`
	Successors []pki.Successor `json:"successors"`
}

// errLater says that this release must not take part: it would do only a part of what is asked for.
var errLater = errors.New("a later release of Cairn wrote it: upgrade this server")

// parse returns what the Secret says, nil for nil. It is input: who may write Secrets wrote it. Certificates and keys are
// checked by pkg/pki when they are used, all of them before anything is written.
func parse(s *corev1.Secret) (*State, error) {
	if s == nil {
		return nil, nil
	}
	state, err := read(s)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return state, nil
}

func read(s *corev1.Secret) (*State, error) {
	if s.Type != secretType {
		return nil, fmt.Errorf("it has type %s, not %s: delete it", s.Type, secretType)
	}
	data := s.Data[stateKey]
	if len(data) > maxState {
		return nil, fmt.Errorf("%s has %d bytes, and %d at most", stateKey, len(data), maxState)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var state State
	if err := d.Decode(&state); err != nil {
		if json.Unmarshal(data, new(State)) == nil { // but for unknown fields
			err = fmt.Errorf("%w (%w)", errLater, err)
		}
		return nil, fmt.Errorf("%s: %w", stateKey, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: something follows the end", stateKey)
	}
	if err := state.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", stateKey, err)
	}
	return &state, nil
}

func (s *State) validate() error {
	switch {
	case s.Stage.Rank() == 0:
		return fmt.Errorf("there is no stage %q", s.Stage)
	case s.Since.IsZero() || s.Begun.IsZero():
		return errors.New("it does not say since when")
	}
	var names []string
	for _, a := range s.Successors {
		names = append(names, a.Name)
	}
	want := pki.Authorities()
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		return fmt.Errorf("it has successors of %q, and must have one of each of %q", names, want)
	}
	id, err := identify(s.Successors)
	if err == nil && id != s.ID {
		err = fmt.Errorf("its id is %.80q, and the certificate of its %s has %s", s.ID, pki.ServerCA, id)
	}
	return err
}

// identify returns the hash of the new server-ca.
func identify(all []pki.Successor) (string, error) {
	i := slices.IndexFunc(all, func(s pki.Successor) bool { return s.Name == pki.ServerCA })
	if i < 0 {
		return "", fmt.Errorf("it has no successor of %s", pki.ServerCA)
	}
	block, _ := pem.Decode(all[i].Certificate)
	if block == nil {
		return "", fmt.Errorf("the successor of %s has no certificate", pki.ServerCA)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("the successor of %s: %w", pki.ServerCA, err)
	}
	return token.Pin(c.Raw), nil
}

// fill writes the state into s, or into a new Secret for nil.
func (s *State) fill(secret *corev1.Secret) (*corev1.Secret, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the rotation: %w", err)
	}
	if secret == nil {
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: join.Namespace, Name: join.RotationName}, Type: secretType}
	}
	secret.Data = map[string][]byte{stateKey: data}
	return secret, nil
}

// mark is what a server that has come as far as the state's stage says in its record.
func (s *State) mark() string { return s.ID + "/" + string(s.Stage) }
