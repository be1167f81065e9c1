package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/release"
)

// Names below Options.Dir. The roots are trusted/2.root.json and so on.
const (
	newestName    = "newest-time"
	floorName     = "floor"
	timestampName = "trusted/timestamp.json"
	snapshotName  = "trusted/snapshot.json"
	targetsName   = "trusted/targets.json"
)

// trustedDir is where the cache of metadata lies below Options.Dir.
func trustedDir(dir string) string { return filepath.Join(dir, "trusted") }

func rootName(version int64) string { return fmt.Sprintf("trusted/%d.root.json", version) }

// cache is what a client keeps on the disk.
type cache struct {
	dir string
	log *slog.Logger
}

func (c cache) prepare() error {
	dir := trustedDir(c.dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// What atomicfile had begun when the power went.
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func (c cache) write(name string, data []byte) error {
	return atomicfile.Write(filepath.Join(c.dir, name), data, 0o644)
}

// read returns nil for a file that is not there.
func (c cache) read(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// discard throws a file away that cannot be used.
func (c cache) discard(name string, cause error) error {
	c.log.Warn("trusted file thrown away", "file", filepath.Join(c.dir, name), "cause", cause)
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// chain follows the kept roots from anchor on and returns the newest. What does not continue the chain is thrown away: it
// is damaged, or continues another anchor.
func (c cache) chain(anchor []byte) ([]byte, error) {
	var set *trustedmetadata.TrustedMetadata
	err := guard(func() (err error) {
		set, err = trustedmetadata.New(anchor)
		return err
	})
	if err != nil {
		return nil, judge("root.json", err)
	}
	first, newest := set.Root.Signed.Version+1, anchor
	for {
		name := rootName(set.Root.Signed.Version + 1)
		data, err := c.read(name)
		if err != nil {
			return nil, err
		}
		if data == nil {
			break
		}
		if err := updateRoot(set, data); err != nil {
			if err := c.discard(name, err); err != nil {
				return nil, err
			}
			break
		}
		newest = data
	}
	return newest, c.prune(first, set.Root.Signed.Version)
}

// prune removes the roots that are not in the chain from first to last: a newer anchor made them useless, or they hang in
// the air.
func (c cache) prune(first, last int64) error {
	names, err := filepath.Glob(filepath.Join(trustedDir(c.dir), "*.root.json"))
	for _, name := range names {
		text, _, _ := strings.Cut(filepath.Base(name), ".")
		if n, parseErr := strconv.ParseInt(text, 10, 64); parseErr != nil || n < first || n > last {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return err
}

// newestTime is the zero time when none is kept.
func (c cache) newestTime() (time.Time, error) {
	data, err := c.read(newestName)
	if err != nil || data == nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return time.Time{}, c.discard(newestName, err)
	}
	return t.UTC(), nil
}

// floor is empty when none is kept.
func (c cache) floor() (string, error) {
	data, err := c.read(floorName)
	if err != nil || data == nil {
		return "", err
	}
	floor := strings.TrimSpace(string(data))
	if err := release.CheckVersion(floor); err != nil {
		return "", c.discard(floorName, err)
	}
	return floor, nil
}
