package debian

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
)

// mirrors are the archive's addresses.
type mirrors struct {
	main, security string
}

// defaultMirrors are Debian's public ones, for a machine whose apt knows none.
var defaultMirrors = mirrors{
	main:     "http://deb.debian.org/debian",
	security: "http://deb.debian.org/debian-security",
}

// machineMirrors returns the mirrors that the build machine's own apt uses, so
// that a machine behind its own mirror works. Files are trusted for Debian's
// signature on them, not for where they come from.
func machineMirrors(ctx context.Context) (mirrors, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
	if err != nil {
		return mirrors{}, err
	}
	return parseMirrors(string(out), os.ReadFile), nil
}

// parseMirrors reads lines of a repository's URI and its release name. The
// first Debian release of each kind counts; other repositories do not.
func parseMirrors(lines string, readFile func(string) ([]byte, error)) mirrors {
	m := defaultMirrors
	var haveMain, haveSecurity bool
	for line := range strings.Lines(lines) {
		uri, release, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		base, kind, _ := strings.Cut(strings.TrimSuffix(release, "/updates"), "-")
		if !slices.Contains(debianSuites, base) {
			continue
		}
		if uri, ok = webAddress(uri, readFile); !ok {
			continue
		}
		switch {
		case kind == "" && !haveMain:
			m.main, haveMain = strings.TrimSuffix(uri, "/"), true
		case kind == "security" && !haveSecurity:
			m.security, haveSecurity = strings.TrimSuffix(uri, "/"), true
		}
	}
	return m
}

// webAddress returns the address by which single files of a repository can be
// fetched. Debian's cloud images name a list of mirrors (apt-transport-mirror(1)):
// its first line counts. A CD has nothing for us.
func webAddress(uri string, readFile func(string) ([]byte, error)) (string, bool) {
	if list, ok := strings.CutPrefix(uri, "mirror+file:"); ok {
		data, err := readFile(strings.TrimSuffix(list, "/"))
		if err != nil {
			return "", false
		}
		uri = ""
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
				uri = fields[0]
				break
			}
		}
	}
	return uri, strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://")
}

// debianSuites are the releases by which a repository is known to be Debian's.
var debianSuites = []string{
	"bullseye", "bookworm", "trixie", "forky", "sid",
	"oldstable", "stable", "testing", "unstable",
}

func (m mirrors) sourcesList(arch string) string {
	var b strings.Builder
	deb := func(uri, suite, components string) {
		fmt.Fprintf(&b, "deb [arch=%s signed-by=%s targets=Packages] %s %s %s\n", arch, keyring, uri, suite, components)
	}
	deb(m.main, Suite, "main non-free-firmware")
	deb(m.main, Suite+"-updates", "main non-free-firmware")
	deb(m.security, Suite+"-security", "main non-free-firmware")
	fmt.Fprintf(&b, "deb-src [signed-by=%s targets=Sources] %s %s main\n", keyring, m.main, sourceSuite)
	return b.String()
}
