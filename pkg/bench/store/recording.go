package store

import (
	"bytes"
	_ "embed"
	"encoding/gob"
	"fmt"
	"regexp"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Recording is what an apiserver asked of its store and what it kept there.
type Recording struct {
	Kubernetes  string  // version
	Seconds     float64 // of recording
	Connections int     // that the apiserver opened
	Resources   []Resource
}

// Resource is a kind of object, as the apiserver lays them out in the store.
type Resource struct {
	Name                                  string // the key's part after /registry/ and before the namespace
	Live                                  int    // objects at the end of the recording
	Creates, Updates, Deletes             int    // requests, as those below
	Gets, Lists, Counts, Watches          int
	Leased                                int      // creations with a lease
	Kept, Created, Updated                []Object // samples: of what is live, of what was written
	KeptBytes, CreatedBytes, UpdatedBytes int64    // of all values, not only the samples'
}

// Object is a recorded key and value.
type Object struct {
	Key   string
	Value []byte
	// Secret is how many bytes of ciphertext followed Value, which is then the
	// plain prefix that names the key and the cipher.
	Secret int
}

// Size is the length of the whole value.
func (o Object) Size() int { return len(o.Value) + o.Secret }

//go:embed apiserver.gob.zst
var recorded []byte

// Recorded returns the recording that is part of the sources.
func Recorded() (*Recording, error) { return decodeRecording(recorded) }

func decodeRecording(data []byte) (*Recording, error) {
	d, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var r Recording
	if err := gob.NewDecoder(d).Decode(&r); err != nil {
		return nil, fmt.Errorf("read the recording: %w", err)
	}
	return &r, nil
}

func (r *Recording) encode() ([]byte, error) {
	var out bytes.Buffer
	e, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, err
	}
	if err := gob.NewEncoder(e).Encode(r); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

const registry = "/registry/"

// resourceOf returns the resource's name in a key: the first part after
// /registry/, or two where the first is an API group or "services".
func resourceOf(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, registry)
	if !ok {
		return "", false
	}
	parts := strings.SplitN(rest, "/", 3)
	if len(parts) == 1 {
		return "", false // the apiserver's health check
	}
	if parts[1] != "" && (strings.Contains(parts[0], ".") || parts[0] == "services") {
		return parts[0] + "/" + parts[1], true
	}
	return parts[0], true
}

// cipher is the prefix of a value that the apiserver has encrypted.
var cipher = regexp.MustCompile(`^k8s:enc:[^:]*:[^:]*:[^:]*:`)

// object keeps a key and its value without secrets.
func object(key string, value []byte) Object {
	o := Object{Key: key, Value: bytes.Clone(value)}
	if prefix := cipher.Find(value); prefix != nil {
		o.Value, o.Secret = bytes.Clone(prefix), len(value)-len(prefix)
	}
	return o
}
