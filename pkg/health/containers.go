package health

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
)

// containerID is what containerd calls a container, and with the driver cgroupfs its cgroup.
var containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Containers are the IDs of all containers that have a cgroup below root, /sys/fs/cgroup on a node. A cgroup is of this boot, whatever
// the API server says and however the clock jumped.
func Containers(root string) (map[string]bool, error) {
	all := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != root:
			return nil // ended just now
		case err != nil:
			return err
		case d.IsDir() && containerID.MatchString(d.Name()):
			all[d.Name()] = true
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	return all, nil
}
