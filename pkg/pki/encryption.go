package pki

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// EnsureEncryption creates at path, unless it is there, the apiserver's configuration that encrypts Secrets at rest,
// with a key of its own. The file is the only copy of that key.
func EnsureEncryption(path string, now time.Time) error {
	if err := CheckEncryption(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return fmt.Errorf("secrets encryption: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("secrets encryption: %w", err)
	}
	// The identity provider reads Secrets that were stored before encryption; it never writes, being last.
	text := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - name: key-%d
        secret: %s
  - identity: {}
`, now.Unix(), base64.StdEncoding.EncodeToString(key[:]))
	if err := atomicfile.Write(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("secrets encryption: %w", err)
	}
	return nil
}

// CheckEncryption returns an error unless the configuration of EnsureEncryption is there; one that wraps fs.ErrNotExist
// when it lacks. A server that joined received it and must never make its own.
func CheckEncryption(path string) error {
	data, err := os.ReadFile(path)
	switch {
	case err != nil:
		return fmt.Errorf("secrets encryption: %w", err)
	case len(data) == 0:
		return fmt.Errorf("secrets encryption %s: the file is empty; restore it, or the Secrets in the store stay unreadable", path)
	}
	return nil
}
