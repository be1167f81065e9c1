package release

import (
	"fmt"
	"path"
	"strings"
)

// AnchorPath is where a root file system has the root metadata by which a machine trusts releases.
const AnchorPath = "/usr/share/cairn/update/root.json"

// CheckName says what is wrong with name as that of a target or a channel: both
// are parts of paths and of URLs.
func CheckName(name string) error {
	if name == "" || len(name) > 32 || name[0] == '-' || !only(name, letters+digits+"-") {
		return fmt.Errorf("name %q: want at most 32 lower-case letters, digits and hyphens, with no hyphen first", name)
	}
	return nil
}

// ManifestPath is the TUF target path of the Manifest of a version for target.
func ManifestPath(target, version string) string { return path.Join(target, version, "release.json") }

// IndexPath is the TUF target path of the index of an image ("boot", "root").
func IndexPath(target, version, image string) string {
	return path.Join(target, version, image+".caibx")
}

// ChannelPath is the TUF target path of a Channel.
func ChannelPath(target, channel string) string { return path.Join(target, channel+".json") }

// CheckPath says what is wrong with p as the path of a file below a release's
// directory: relative, clean, in plain characters that are the same in a URL.
func CheckPath(p string) error {
	switch {
	case p == "" || len(p) > 256:
		return fmt.Errorf("path of %d characters: want 1 to 256", len(p))
	case strings.HasPrefix(p, "/"):
		return fmt.Errorf("path %q: not relative", p)
	case !only(p, identifier+"._/"):
		return fmt.Errorf("path %q: want only letters, digits and any of - . _ /", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %q: has an empty part, or one that leads elsewhere", p)
		}
	}
	return nil
}
