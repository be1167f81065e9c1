// Package sysctl sets kernel parameters below /proc/sys.
package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Setting is one kernel parameter.
type Setting struct {
	Key   string // "net.ipv4.ip_forward", or with slashes where a part holds a dot: "net/ipv4/conf/eth0.7/forwarding"
	Value string
	// Why says what would go wrong with the kernel's own value.
	Why string
	// Optional parameters may be missing because their kernel module is not loaded.
	Optional bool
}

// Path returns the file of key below root ("/proc/sys"). As in sysctl(8) the first separator of the key decides: when
// it is a slash, dots are literal, and when it is a dot, slashes stand for literal dots.
func Path(root, key string) (string, error) {
	rel := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		rel = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if key == "" || !filepath.IsLocal(rel) || filepath.Clean(rel) != rel || strings.ContainsAny(rel, "\x00\n") {
		return "", fmt.Errorf("sysctl %q: not the name of a kernel parameter", key)
	}
	return filepath.Join(root, rel), nil
}

// Set writes one parameter. A missing one is an error that wraps fs.ErrNotExist.
func Set(root, key, value string) error {
	path, err := Path(root, key)
	if err != nil {
		return err
	}
	// No O_CREATE: in a test's root, too, a wrong name must not make a file.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", key, err)
	}
	_, err = f.WriteString(value + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// SetAll writes all settings and goes on after an error; missing optional ones are passed over in silence.
func SetAll(root string, settings []Setting) error {
	var errs []error
	for _, s := range settings {
		if err := Set(root, s.Key, s.Value); err != nil && (!s.Optional || !errors.Is(err, os.ErrNotExist)) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
