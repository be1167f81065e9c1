package signing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// nextFile holds the root metadata under way.
const nextFile = "next.root.json"

// Init makes all keys and the first root metadata in dir, which must hold none.
// Any threshold of the roots can change the keys later.
func Init(dir string, roots, threshold int, now time.Time) error {
	if roots < 1 || threshold < 1 || threshold > roots {
		return fmt.Errorf("threshold %d of %d root keys: want at least one, and no more than there are", threshold, roots)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(rootFile(dir, 1)); err == nil {
		return fmt.Errorf("%s has keys of releases already: rotate them instead (cairnctl release keys rotate)", dir)
	}
	root := metadata.Root(expiry(now, rootLife))
	root.Signed.Roles[metadata.ROOT].Threshold = threshold
	var files []string
	for i := range roots {
		file := keyFile(dir, metadata.ROOT, int64(i+1))
		if err := addKey(root, metadata.ROOT, file); err != nil {
			return err
		}
		files = append(files, file)
	}
	for _, role := range online {
		if err := addKey(root, role, keyFile(dir, role, 1)); err != nil {
			return err
		}
	}
	if err := writeNext(dir, root); err != nil {
		return err
	}
	_, err := SignRoot(dir, files...)
	return err
}

// addKey makes a key in file and gives it to role.
func addKey(root *metadata.Metadata[metadata.RootType], role, file string) error {
	key, err := makeKey(file)
	if err != nil {
		return err
	}
	return root.Signed.AddKey(key, role)
}

// Rotate begins new root metadata in which a key of role is replaced by one
// that it makes. An online role has one key, and the new one lies in dir, too.
// Of root, replaced is the ID or the file of the key to be replaced, and the new
// one is written to the file made. SignRoot completes it; until then releases go
// on with the keys from before.
func Rotate(dir, role, replaced, made string, now time.Time) error {
	next, err := begin(dir, now)
	if err != nil {
		return err
	}
	switch {
	case role == metadata.ROOT:
		if replaced, err = rootKeyID(next, replaced); err != nil {
			return err
		}
	case slices.Contains(online, role):
		replaced, made = next.Signed.Roles[role].KeyIDs[0], keyFile(dir, role, next.Signed.Version)
	default:
		return fmt.Errorf("role %q: want root, targets, snapshot or timestamp", role)
	}
	if err := next.Signed.RevokeKey(replaced, role); err != nil {
		return fmt.Errorf("replace key %s of %s: %w", replaced, role, err)
	}
	if err := addKey(next, role, made); err != nil {
		return err
	}
	return writeNext(dir, next)
}

// Renew begins new root metadata with the same keys and a later end.
func Renew(dir string, now time.Time) error {
	next, err := begin(dir, now)
	if err != nil {
		return err
	}
	return writeNext(dir, next)
}

// begin returns the root metadata that follow: those under way, without their
// signatures, so that several keys can change at a time, or a copy of the newest.
func begin(dir string, now time.Time) (*metadata.Metadata[metadata.RootType], error) {
	roots, err := readRoots(dir)
	if err != nil {
		return nil, err
	}
	next, err := readNext(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if next, err = parseRoot(roots[len(roots)-1]); err == nil {
			next.Signed.Version++
		}
	}
	if err != nil {
		return nil, err
	}
	next.ClearSignatures()
	next.Signed.Expires = expiry(now, rootLife)
	return next, nil
}

// rootKeyID returns the ID of the root key that name means: an ID, or the file
// of the key.
func rootKeyID(root *metadata.Metadata[metadata.RootType], name string) (string, error) {
	ids := root.Signed.Roles[metadata.ROOT].KeyIDs
	if slices.Contains(ids, name) {
		return name, nil
	}
	_, key, err := readKey(name)
	if err != nil {
		return "", fmt.Errorf("root key to replace: want its file or one of the IDs %q: %w", ids, err)
	}
	id, err := key.ID()
	if err == nil && !slices.Contains(ids, id) {
		err = fmt.Errorf("%s is no key of root", name)
	}
	return id, err
}

func readNext(dir string) (*metadata.Metadata[metadata.RootType], error) {
	data, err := os.ReadFile(filepath.Join(dir, nextFile))
	if err != nil {
		return nil, err
	}
	return parseRoot(data)
}

func writeNext(dir string, root *metadata.Metadata[metadata.RootType]) error {
	data, err := root.ToBytes(true)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, nextFile), data, 0o644)
}

// SignRoot signs the root metadata under way with the given root keys, each
// signature once. When enough keys of the version before and of the new one have
// signed, it becomes the newest: then missing is nil. Otherwise missing says, in
// words, whose signatures lack; what was signed so far is kept.
func SignRoot(dir string, keyFiles ...string) (missing error, err error) {
	next, err := readNext(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no root metadata to sign: begin by cairnctl release keys rotate", dir)
	}
	if err != nil {
		return nil, err
	}
	before := next
	if next.Signed.Version > 1 {
		roots, err := readRoots(dir)
		if err != nil {
			return nil, err
		}
		if before, err = parseRoot(roots[len(roots)-1]); err != nil {
			return nil, err
		}
	}
	for _, file := range keyFiles {
		if err := signOnce(before, next, file); err != nil {
			return nil, err
		}
	}
	missing = errors.Join(lacks("the version before", before, next), lacks("the new version", next, next))
	if missing != nil {
		return missing, writeNext(dir, next)
	}
	data, err := next.ToBytes(true)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(rootFile(dir, next.Signed.Version), data, 0o644); err != nil {
		return nil, err
	}
	return nil, os.Remove(filepath.Join(dir, nextFile))
}

// signOnce adds the signature of the key in file unless it is there.
func signOnce(before, next *metadata.Metadata[metadata.RootType], file string) error {
	signer, key, err := readKey(file)
	if err != nil {
		return err
	}
	id, err := key.ID()
	if err != nil {
		return err
	}
	if !slices.Contains(before.Signed.Roles[metadata.ROOT].KeyIDs, id) && !slices.Contains(next.Signed.Roles[metadata.ROOT].KeyIDs, id) {
		return fmt.Errorf("%s is no key of root, neither before nor after the change", file)
	}
	if slices.ContainsFunc(next.Signatures, func(s metadata.Signature) bool { return s.KeyID == id }) {
		return nil
	}
	_, err = next.Sign(signer)
	return err
}

// lacks says how many signatures of by's root keys next still needs.
func lacks(whose string, by, next *metadata.Metadata[metadata.RootType]) error {
	if by.VerifyDelegate(metadata.ROOT, next) == nil {
		return nil
	}
	role, have := by.Signed.Roles[metadata.ROOT], 0
	for _, s := range next.Signatures {
		if slices.Contains(role.KeyIDs, s.KeyID) {
			have++
		}
	}
	return fmt.Errorf("%d of %d signatures by root keys of %s", have, role.Threshold, whose)
}

func expiry(now time.Time, life time.Duration) time.Time {
	return now.Add(life).UTC().Truncate(time.Second)
}
