package release

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// A version of Cairn is a semantic version (semver.org, 2.0.0) as "0.1.0-dev"
// or "1.4.2": without a leading v, and without build metadata, which the order
// would ignore, so that two different releases would count as the same.

// maxVersion is the length of the longest version: it is part of file names.
const maxVersion = 64

// Compare orders versions as semantic versioning does: negative when a is
// older than b, 0 when they are the same, positive when a is newer. A
// pre-release is older than its release. Text that is no version is older than
// every version, and such texts compare as strings, so the order is total.
func Compare(a, b string) int {
	av, aErr := parseVersion(a)
	bv, bErr := parseVersion(b)
	switch {
	case aErr != nil && bErr != nil:
		return strings.Compare(a, b)
	case aErr != nil:
		return -1
	case bErr != nil:
		return 1
	}
	return av.compare(bv)
}

// CheckVersion says what is wrong with text as a version of Cairn.
func CheckVersion(text string) error {
	if len(text) > maxVersion {
		return fmt.Errorf("version of %d characters: longer than %d", len(text), maxVersion)
	}
	if _, err := parseVersion(text); err != nil {
		return fmt.Errorf("version %q: %w", text, err)
	}
	return nil
}

// KubernetesSkips says whether a cluster that runs Kubernetes from must not go
// to Kubernetes to in one step: the minor version would be skipped, or it would
// go back, or the major version would change (kubernetes.io, "Version Skew
// Policy": the API server is upgraded one minor version at a time). Patch
// versions may go both ways. Both are written as Kubernetes does, "v1.36.4". What
// cannot be read counts as a skip, because nothing can be said for it.
func KubernetesSkips(from, to string) bool {
	f, fErr := parseKubernetes(from)
	t, tErr := parseKubernetes(to)
	if fErr != nil || tErr != nil || compareNumbers(f.core[0], t.core[0]) != 0 {
		return true
	}
	back := compareNumbers(t.core[1], f.core[1]) < 0
	return back || compareNumbers(t.core[1], f.core[1]) > 0 && increment(f.core[1]) != t.core[1]
}

// version is a parsed semantic version. Numbers stay text, so that none is too
// large.
type version struct {
	core [3]string
	pre  []string
}

func parseVersion(text string) (version, error) {
	core, pre, hasPre := strings.Cut(text, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return version{}, errors.New(`not of the form "1.2.3" or "1.2.3-rc.1"`)
	}
	var v version
	for i, p := range parts {
		if !number(p) || len(p) > 1 && p[0] == '0' {
			return version{}, fmt.Errorf("%q is not a number without leading zeros", p)
		}
		v.core[i] = p
	}
	if !hasPre {
		return v, nil
	}
	v.pre = strings.Split(pre, ".")
	for _, p := range v.pre {
		if p == "" || !only(p, identifier) {
			return version{}, fmt.Errorf("pre-release part %q is not made of letters, digits and hyphens", p)
		}
		if number(p) && len(p) > 1 && p[0] == '0' {
			return version{}, fmt.Errorf("pre-release part %q has a leading zero", p)
		}
	}
	return v, nil
}

// parseKubernetes reads a version as "v1.36.4", also one with build metadata.
func parseKubernetes(text string) (version, error) {
	rest, ok := strings.CutPrefix(text, "v")
	if !ok || len(text) > maxVersion {
		return version{}, errors.New(`not of the form "v1.36.4"`)
	}
	rest, build, hasBuild := strings.Cut(rest, "+")
	if hasBuild && (build == "" || !only(build, identifier+".")) {
		return version{}, fmt.Errorf("build metadata %q is not made of letters, digits, dots and hyphens", build)
	}
	return parseVersion(rest)
}

func (v version) compare(o version) int {
	for i := range v.core {
		if c := compareNumbers(v.core[i], o.core[i]); c != 0 {
			return c
		}
	}
	if len(v.pre) == 0 || len(o.pre) == 0 {
		return cmp.Compare(len(o.pre), len(v.pre)) // one without is newer
	}
	for i := range min(len(v.pre), len(o.pre)) {
		if c := comparePre(v.pre[i], o.pre[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.pre), len(o.pre))
}

// comparePre orders two parts of pre-releases: numbers before words.
func comparePre(a, b string) int {
	switch an, bn := number(a), number(b); {
	case an && bn:
		return compareNumbers(a, b)
	case an:
		return -1
	case bn:
		return 1
	}
	return strings.Compare(a, b)
}

// compareNumbers orders decimal numbers without leading zeros.
func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// increment returns the decimal number after n.
func increment(n string) string {
	text := []byte(n)
	for i := len(text) - 1; i >= 0; i-- {
		if text[i] != '9' {
			text[i]++
			return string(text)
		}
		text[i] = '0'
	}
	return "1" + string(text)
}

func number(s string) bool { return s != "" && only(s, digits) }

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyz"
	// identifier are the characters that semantic versioning allows in a part of
	// a pre-release.
	identifier = digits + letters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ-"
)
