package config

import (
	"fmt"
	"reflect"

	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/token"
)

// minSecret is how many characters a first server wants of a token that a person chose. With it others become servers, which
// get every secret of the cluster, and whoever hears a machine join can guess at it at leisure.
const minSecret = 16

const makeSecret = "make one with `head -c 18 /dev/urandom | base64`"

// shortToken says whether the machine begins a cluster with a token that can be guessed. What a machine joins with, the
// cluster decides.
func shortToken(c *Config) bool {
	if c.EffectiveRole() != RoleServer || c.Cairn.ServerURL != "" || c.Cairn.Token == "" {
		return false
	}
	t, err := token.Parse(c.Cairn.Token)
	return err == nil && len(t.Secret) < minSecret
}

// checkToken refuses a short token. k3OS took any, and its documents shall move here as they are: see Warnings.
func (m *merger) checkToken(c *Config) {
	if n := get(m.root, "cairn"); shortToken(c) && !m.k3os[m.files[get(n, "token")]] {
		m.problem(fmt.Sprintf("the token of a first server admits other servers, which get all of the cluster's secrets: want at least %d characters; %s",
			minSecret, makeSecret), "cairn", "token")
	}
}

// Warnings are about what is accepted and not good, in words for the machine's owner. They hold no secret. line is the kernel
// command line that was one of the sources.
func Warnings(c *Config, line cmdline.Line) []string {
	var all []string
	if hasToken(line) {
		all = append(all, "cairn.token is on the kernel command line, where every process and every pod can read it (/proc/cmdline): "+
			"put it into the configuration file instead")
	}
	if shortToken(c) {
		all = append(all, fmt.Sprintf("cairn.token has less than %d characters and can be guessed; it admits servers, which get all of the cluster's secrets: %s",
			minSecret, makeSecret))
	}
	return all
}

// hasToken says whether the command line holds a token, by its key or among k3s's arguments.
func hasToken(line cmdline.Line) bool {
	s := CommandLine(line)
	tree, _, err := s.read()
	if err != nil {
		return false // Merge has refused it.
	}
	m := newMerger()
	m.merge(m.root, tree, field{typ: reflect.TypeFor[Config]()}, s.Name)
	m.applyK3s()
	n := get(m.root, "cairn")
	return n != nil && get(n, "token") != nil
}
