package join

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// writeFile replaces a file durably and whole.
type writeFile func(path string, data []byte, mode fs.FileMode) error

const encryptionName = "encryption.yaml"

// bundleFile is a file that a machine gets when it joins. Servers know it by its name, machines by its place.
type bundleFile struct {
	name string
	dir  string // below Options.Dir
	mode fs.FileMode
}

// bundleFor lists all that a machine of that role may get: filesFor's, and those of crossFor.
func bundleFor(role membership.Role) (all []bundleFile, optional func(bundleFile) bool) {
	cross := crossFor(role)
	return append(filesFor(role), cross...), func(f bundleFile) bool { return slices.Contains(cross, f) }
}

// serverCALast moves the file that stands for the others to the end.
func serverCALast(all []bundleFile) []bundleFile {
	isServerCA := func(f bundleFile) bool { return f.name == filepath.Base(pki.CertFile("", pki.ServerCA)) }
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b bundleFile) int {
		switch {
		case isServerCA(a) == isServerCA(b):
			return 0
		case isServerCA(a):
			return 1
		}
		return -1
	})
	return sorted
}

// crossFor lists the cross certificates that a machine of that role gets, if there are any: those of authorities that were
// replaced. They are for who puts them behind certificates: servers, which sign, and agents, whose signer does not.
func crossFor(role membership.Role) []bundleFile {
	names, dir := []string(nil), serverTLS
	switch role {
	case membership.Server:
		names = pki.Authorities()
	case membership.Agent:
		names, dir = []string{pki.ClientCA, pki.KubeletCA}, nodeTLS
	}
	var all []bundleFile
	for _, name := range names {
		all = append(all, bundleFile{filepath.Base(pki.CrossFile("", name)), dir, 0o644})
	}
	return all
}

// Directories below Options.Dir.
const (
	nodeTLS   = "node/tls"
	serverDir = "server"
	serverTLS = "server/tls"
)

// filesFor lists what a machine of that role gets, in the order in which it is read and, when it joins, written. A witness needs the server-ca to
// ask for its next certificate.
func filesFor(role membership.Role) []bundleFile {
	var all []bundleFile
	switch role {
	case membership.Server:
		for _, name := range pki.Authorities() {
			all = append(all,
				bundleFile{filepath.Base(pki.PairFile("", name)), serverTLS, 0o600},
				bundleFile{filepath.Base(pki.CertFile("", name)), serverTLS, 0o644})
		}
		all = append(all,
			bundleFile{filepath.Base(pki.ServiceAccountKey("")), serverTLS, 0o600},
			bundleFile{encryptionName, serverDir, 0o600})
	case membership.Agent:
		for _, name := range []string{pki.ServerCA, pki.ClientCA, pki.KubeletCA} {
			all = append(all, bundleFile{filepath.Base(pki.CertFile("", name)), nodeTLS, 0o644})
		}
	case membership.Witness:
		all = append(all,
			bundleFile{filepath.Base(pki.CertFile("", pki.ServerCA)), nodeTLS, 0o644},
			bundleFile{filepath.Base(pki.CertFile("", pki.StoreCA)), serverTLS, 0o644})
	}
	return all
}

// own are the files that a machine of that role makes itself, below Options.Dir, beside its identity.
func ownFiles(role membership.Role) []string {
	switch role {
	case membership.Agent:
		return []string{pki.PairFile(nodeTLS, pki.KubeletClient), pki.PairFile(nodeTLS, pki.KubeletServer)}
	case membership.Witness:
		return []string{pki.PairFile(serverTLS, pki.Store)}
	}
	return nil // pki.Ensure's
}

// makeDir creates a directory and those above it, and brings their names to the disk: what is written into it later
// would otherwise be lost with it.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(parent)
}
