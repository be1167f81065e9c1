package member

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// bootstrapFile lies in the directory of a cluster's first member from before
// its identity is written until dqlite has bootstrapped it.
//
// dqlite first writes the term and then the first entry of the log, the
// configuration, and a directory with a term counts as bootstrapped
// (src/raft/uv.c, uvBootstrap; src/server.c, maybeBootstrap, passes over
// RAFT_CANTBOOTSTRAP). A power cut between the two leaves a member that
// knows no member, itself included, and never has a leader. While this file
// is there and no entry is, nothing can have been acknowledged.
const bootstrapFile = ".bootstrapping"

// beginBootstrap says that dir becomes a first member's.
func beginBootstrap(dir string) error {
	return atomicfile.Write(filepath.Join(dir, bootstrapFile), nil, 0o600)
}

// resumeBootstrap makes dqlite bootstrap anew where it was interrupted.
func resumeBootstrap(dir string) error {
	_, err := os.Lstat(filepath.Join(dir, bootstrapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("resume bootstrap: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("resume bootstrap: %w", err)
	}
	var terms []string
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "metadata1", name == "metadata2":
			terms = append(terms, filepath.Join(dir, name))
		case isLog(name):
			return nil // It has been bootstrapped.
		}
	}
	for _, name := range terms {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("resume bootstrap: %w", err)
		}
	}
	if err := atomicfile.SyncDir(dir); err != nil {
		return fmt.Errorf("resume bootstrap: %w", err)
	}
	return nil
}

// endBootstrap says that dir is bootstrapped. It must come before the member
// acknowledges anything.
func endBootstrap(dir string) error {
	err := os.Remove(filepath.Join(dir, bootstrapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = atomicfile.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("end bootstrap: %w", err)
	}
	return nil
}

// isLog reports whether name is one of dqlite's segments or snapshots.
func isLog(name string) bool {
	if strings.HasPrefix(name, "open-") || strings.HasPrefix(name, "snapshot-") {
		return true
	}
	first, last, found := strings.Cut(name, "-")
	return found && len(first) == 16 && len(last) == 16 && strings.Trim(first+last, "0123456789") == ""
}
