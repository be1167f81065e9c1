// Package signing keeps the keys of releases and signs TUF metadata with them.
//
// # Keys
//
// The Update Framework (https://theupdateframework.github.io/specification/v1.0.31)
// has four roles. Root says which keys the others have, and how many of them
// must sign; its own keys stay offline, each on a medium of its own, and are
// needed only when a key changes or root's metadata runs out. Targets signs what
// is released, snapshot which metadata belong together, timestamp that this is
// still the newest; their keys lie where releases are made. All are ed25519.
//
// A folder of keys holds:
//
//	targets-1.key, snapshot-1.key, timestamp-1.key   PKCS #8 in PEM, 0600; the number is the version of root that named it
//	root-1.key, root-2.key ...                       the same, numbered; to be moved away
//	1.root.json, 2.root.json ...                     root's metadata, signed by a threshold of keys
//	next.root.json                                   the following one, as long as signatures lack
//
// The newest root metadata is the trust anchor that a root file system carries:
// a machine follows the chain from there, each link signed by a threshold of the
// keys of the one before and of its own.
package signing

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Roles whose keys lie where releases are made.
var online = []string{metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP}

// How long metadata are valid. A machine that was off, or offline, for longer
// than its root's life must be flashed anew; one whose source was not renewed
// for longer than timestamp's life goes on running and refuses to upgrade.
const (
	rootLife      = 10 * 365 * 24 * time.Hour
	targetsLife   = 2 * 365 * 24 * time.Hour
	snapshotLife  = targetsLife
	timestampLife = 180 * 24 * time.Hour
)

// Keys are an opened folder. They are immutable and safe for concurrent use.
type Keys struct {
	roots   [][]byte // 1.root.json and on
	signers map[string]signature.Signer
}

// Open reads what it takes to sign releases: the online keys and root's
// metadata. It needs no root key.
func Open(dir string) (*Keys, error) {
	roots, err := readRoots(dir)
	if err != nil {
		return nil, err
	}
	k := &Keys{roots: roots, signers: map[string]signature.Signer{}}
	newest, err := parseRoot(k.Anchor())
	if err != nil {
		return nil, fmt.Errorf("keys in %s: %w", dir, err)
	}
	for _, role := range online {
		if k.signers[role], err = findKey(dir, role, newest.Signed.Roles[role].KeyIDs); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Anchor is the newest root metadata, which a root file system carries.
func (k *Keys) Anchor() []byte { return bytes.Clone(k.roots[len(k.roots)-1]) }

// readRoots reads and checks the chain of root metadata in dir.
func readRoots(dir string) ([][]byte, error) {
	var all [][]byte
	for n := int64(1); ; n++ {
		data, err := os.ReadFile(rootFile(dir, n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read root metadata: %w", err)
		}
		all = append(all, data)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no keys of releases in %s: make them by cairnctl release keys init", dir)
	}
	var last *metadata.Metadata[metadata.RootType]
	for i, data := range all {
		root, err := parseRoot(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rootFile(dir, int64(i+1)), err)
		}
		if root.Signed.Version != int64(i+1) {
			return nil, fmt.Errorf("%s: holds version %d", rootFile(dir, int64(i+1)), root.Signed.Version)
		}
		// The first has only itself to vouch for it.
		if err := cmp.Or(last, root).VerifyDelegate(metadata.ROOT, root); err != nil {
			return nil, fmt.Errorf("%s: not signed by enough keys of the version before: %w", rootFile(dir, int64(i+1)), err)
		}
		if err := root.VerifyDelegate(metadata.ROOT, root); err != nil {
			return nil, fmt.Errorf("%s: not signed by enough of its own keys: %w", rootFile(dir, int64(i+1)), err)
		}
		last = root
	}
	return all, nil
}

func rootFile(dir string, version int64) string {
	return filepath.Join(dir, fmt.Sprintf("%d.root.json", version))
}

func parseRoot(data []byte) (*metadata.Metadata[metadata.RootType], error) {
	root, err := metadata.Root().FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("read root metadata: %w", err)
	}
	for _, role := range append([]string{metadata.ROOT}, online...) {
		if root.Signed.Roles[role] == nil {
			return nil, fmt.Errorf("read root metadata: no role %s", role)
		}
	}
	return root, nil
}

// findKey returns a key of role in dir that root names in ids. Others may lie
// beside it: older ones, and one whose rotation is not signed yet.
func findKey(dir, role string, ids []string) (signature.Signer, error) {
	files, err := filepath.Glob(filepath.Join(dir, role+"-*.key"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		signer, key, err := readKey(file)
		if err != nil {
			return nil, err
		}
		id, err := key.ID()
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, id) {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("no key of %s in %s that root's metadata name", role, dir)
}

func keyFile(dir, role string, number int64) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d.key", role, number))
}

const pemType = "PRIVATE KEY"

// makeKey makes a key and writes it to file, which must not exist.
func makeKey(file string) (*metadata.Key, error) {
	if _, err := os.Lstat(file); err == nil {
		return nil, fmt.Errorf("make key: %s exists: name a file that does not", file)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	if err := atomicfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return metadata.KeyFromPublicKey(public)
}

// readKey reads a file that makeKey wrote.
func readKey(file string) (signature.Signer, *metadata.Key, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemType {
		return nil, nil, fmt.Errorf("key %s: not a private key in PEM", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", file, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("key %s: of another kind than ed25519", file)
	}
	signer, err := signature.LoadED25519Signer(private)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", file, err)
	}
	key, err := metadata.KeyFromPublicKey(private.Public())
	return signer, key, err
}
