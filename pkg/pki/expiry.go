package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Expiry says how long a certificate on the disk is valid.
type Expiry struct {
	Name      string // as in PairFile and CertFile
	NotBefore time.Time
	NotAfter  time.Time
	Authority bool // signs others
}

// Expiries returns the certificates in dir, of a server, an agent or a witness, by their names. An authority whose key is
// there as well counts once. A machine without the directory has none. When some cannot be read it returns the others
// and an error.
func Expiries(dir string) ([]Expiry, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	var all []Expiry
	var problems []error
	for _, entry := range entries {
		ext := filepath.Ext(entry.Name())
		name := strings.TrimSuffix(entry.Name(), ext)
		if (ext != ".pem" && ext != ".crt") || strings.HasPrefix(name, ".") {
			continue
		}
		if slices.ContainsFunc(all, func(e Expiry) bool { return e.Name == name }) {
			continue
		}
		c, err := loadCert(filepath.Join(dir, entry.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // removed in the meantime
		case err != nil:
			problems = append(problems, fmt.Errorf("read certificate: %w", err))
			continue
		}
		all = append(all, Expiry{name, c.NotBefore, c.NotAfter, c.IsCA})
	}
	slices.SortFunc(all, func(a, b Expiry) int { return strings.Compare(a.Name, b.Name) })
	return all, errors.Join(problems...)
}
