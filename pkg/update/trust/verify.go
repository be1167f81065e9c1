package trust

import (
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// facts are what a file says of itself, whoever signed it.
type facts struct {
	version int64
	expires time.Time
}

// The update functions hand a file to go-tuf, which verifies it and makes it part of the set. Before that they refuse what
// go-tuf takes and then does not expect: it follows an entry that is missing or null, in part before it has looked at the
// signature, and an accepted timestamp without its entry would keep every later one out (go-tuf 2.4.1).

func (r *refresh) updateTimestamp(data []byte) (f facts, err error) {
	err = guard(func() error {
		m, err := metadata.Timestamp().FromBytes(data)
		if err != nil {
			return err
		}
		f = facts{m.Signed.Version, m.Signed.Expires}
		if err := complete(m.Signed.Meta, "snapshot.json"); err != nil {
			return err
		}
		_, err = r.set.UpdateTimestamp(data)
		return err
	})
	return f, err
}

func (r *refresh) updateSnapshot(data []byte, cached bool) (f facts, err error) {
	err = guard(func() error {
		m, err := metadata.Snapshot().FromBytes(data)
		if err != nil {
			return err
		}
		f = facts{m.Signed.Version, m.Signed.Expires}
		if err := complete(m.Signed.Meta, "targets.json"); err != nil {
			return err
		}
		_, err = r.set.UpdateSnapshot(data, cached)
		return err
	})
	return f, err
}

func (r *refresh) updateTargets(data []byte) (f facts, err error) {
	err = guard(func() error {
		m, err := metadata.Targets().FromBytes(data)
		if err != nil {
			return err
		}
		f = facts{m.Signed.Version, m.Signed.Expires}
		_, err = r.set.UpdateTargets(data)
		return err
	})
	return f, err
}

// updateRoot adds data to the chain of roots.
func updateRoot(set *trustedmetadata.TrustedMetadata, data []byte) error {
	return guard(func() error {
		m, err := metadata.Root().FromBytes(data)
		if err != nil {
			return err
		}
		for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
			if m.Signed.Roles[name] == nil {
				return errors.New("no keys for " + name)
			}
		}
		_, err = set.UpdateRoot(data)
		return err
	})
}

// complete says whether meta describes the file need, and none by nothing.
func complete(meta map[string]*metadata.MetaFiles, need string) error {
	for name, m := range meta {
		if m == nil || m.Version < 1 || m.Length < 0 {
			return fmt.Errorf("entry of %s has no version", name)
		}
	}
	if meta[need] == nil {
		return errors.New("no entry of " + need)
	}
	return nil
}

// guard makes an error of a panic in go-tuf: what comes from outside must not end the machine's daemon.
func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("its parts do not fit: %v", v)
		}
	}()
	return f()
}
