package debian

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Package is one binary package of a certain version.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	// SHA256 is the digest of the .deb file, in hex, as signed by Debian.
	SHA256 string `json:"sha256"`
	// Source names the source package and, when it differs from Version,
	// its version in parentheses.
	Source string `json:"source"`

	uri string
}

// Resolve returns the named packages and all they depend on, sorted by name;
// recommended packages do not count. As in apt, a name with a minus sign at its
// end is left out: it and what only it needs are not wanted, because a
// dependency on it is one of maintainer scripts, or is met otherwise.
func (a *Archive) Resolve(ctx context.Context, names ...string) (_ []Package, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("resolve debian packages: %w", err)
		}
	}()
	wanted, without := splitNames(names)
	status, err := os.CreateTemp(a.root, "status.*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(status.Name())
	_, err = status.WriteString(installedStatus(a.arch, without))
	if err := errors.Join(err, status.Close()); err != nil {
		return nil, err
	}
	// What is to be left out counts as installed in a version that satisfies
	// everyone, so apt needs neither it nor its dependencies.
	args := []string{"-o", "Dir::State::status=" + status.Name(), "install", "-qq", "--print-uris", "--no-install-recommends"}
	out, err := a.run(ctx, "apt-get", append(args, wanted...)...)
	if err != nil {
		return nil, err
	}
	pkgs, err := parseURIs(string(out))
	if err != nil {
		return nil, err
	}
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("apt chose no package for %s", strings.Join(wanted, " "))
	}
	if err := a.addSources(ctx, pkgs); err != nil {
		return nil, err
	}
	slices.SortFunc(pkgs, func(x, y Package) int { return cmp.Compare(x.Name, y.Name) })
	return pkgs, nil
}

// splitNames parts what is wanted from what is to be left out.
func splitNames(names []string) (wanted, without []string) {
	for _, n := range names {
		if name, out := strings.CutSuffix(n, "-"); out {
			without = append(without, name)
		} else {
			wanted = append(wanted, n)
		}
	}
	return wanted, without
}

// installedStatus is a dpkg database in which names are installed.
func installedStatus(arch string, names []string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "Package: %s\nStatus: install ok installed\nPriority: optional\nSection: admin\n"+
			"Maintainer: none <none@localhost>\nArchitecture: %s\nMulti-Arch: foreign\nVersion: 9999:0\nDescription: left out\n\n", n, arch)
	}
	return b.String()
}

// parseURIs reads lines of "apt-get --print-uris install":
//
//	'http://host/pool/b/busybox_1.37.deb' busybox_1%3a1.37_amd64.deb 484988 SHA256:9f57…
func parseURIs(out string) ([]Package, error) {
	var pkgs []Package
	for line := range strings.Lines(out) {
		file, err := parseURI(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		parts := strings.Split(strings.TrimSuffix(file.name, ".deb"), "_")
		if len(parts) != 3 {
			return nil, fmt.Errorf("package file name %q: want name_version_arch.deb", file.name)
		}
		pkgs = append(pkgs, Package{Name: parts[0], Version: parts[1], Arch: parts[2], SHA256: file.sha256, uri: file.uri})
	}
	return pkgs, nil
}

// remoteFile is a file of the archive.
type remoteFile struct {
	uri, name, sha256 string
}

func parseURI(line string) (remoteFile, error) {
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return remoteFile{}, fmt.Errorf("apt's line %q: want a URI, a name, a size and a digest", line)
	}
	sum, ok := strings.CutPrefix(fields[3], "SHA256:")
	if !ok || len(sum) != 64 {
		return remoteFile{}, fmt.Errorf("apt's line %q: no SHA-256 digest", line)
	}
	name, err := url.PathUnescape(fields[1])
	if err != nil {
		return remoteFile{}, fmt.Errorf("apt's line %q: %w", line, err)
	}
	if strings.ContainsAny(name, "/\x00") {
		return remoteFile{}, fmt.Errorf("apt's line %q: bad file name", line)
	}
	return remoteFile{uri: strings.Trim(fields[0], "'"), name: name, sha256: sum}, nil
}

// addSources fills in the source packages from the packages' records.
func (a *Archive) addSources(ctx context.Context, pkgs []Package) error {
	args := []string{"show", "--no-all-versions"}
	for _, p := range pkgs {
		args = append(args, p.Name+"="+p.Version)
	}
	out, err := a.run(ctx, "apt-cache", args...)
	if err != nil {
		return err
	}
	sources := parseSources(out)
	for i, p := range pkgs {
		source, ok := sources[p.SHA256]
		if !ok {
			return fmt.Errorf("package %s %s: no record with its digest", p.Name, p.Version)
		}
		pkgs[i].Source = cmp.Or(source, p.Name)
	}
	return nil
}

// parseSources returns the Source field of records by their SHA256 field.
func parseSources(records []byte) map[string]string {
	sources := map[string]string{}
	for record := range bytes.SplitSeq(records, []byte("\n\n")) {
		var source, sum string
		for line := range strings.Lines(string(record)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch name {
			case "Source":
				source = value
			case "SHA256":
				sum = value
			}
		}
		if sum != "" {
			sources[sum] = source
		}
	}
	return sources
}
