package config

import (
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/cmdline"
)

// TestFirstServersToken: a short token is refused where a person gives it to a first server, and the message says how to make a
// longer one and not the token.
func TestFirstServersToken(t *testing.T) {
	const problem = "the token of a first server admits other servers, which get all of the cluster's secrets: want at least 16 characters; " +
		"make one with `head -c 18 /dev/urandom | base64`"
	for _, tt := range []struct {
		name, document, line, want string
	}{
		{"short", "cairn:\n  token: hunter2\n", "", "seed:2: cairn.token: " + problem},
		{"15", "cairn: {token: 123456789012345}\n", "", "seed:1: cairn.token: " + problem},
		{"16", "cairn: {token: 1234567890123456}\n", "", ""},
		{"the README's", "cairn: {token: a-secret-of-this-shop}\n", "", ""},
		{"short, whole", "cairn: {token: '" + pin + "::server:hunter2'}\n", "", "seed:1: cairn.token: " + problem},
		{"by line", "#\n", "cairn.token=hunter2", "kernel command line: cairn.token: " + problem},
		{"role server", "cairn: {role: server, token: hunter2}\n", "", "seed:1: cairn.token: " + problem},
		{"k3s_args", "cairn:\n  k3s_args: [server, --token=hunter2]\n", "", "seed:2: cairn.token: " + problem},
		{"joins", "cairn: {server_url: 'https://a', token: hunter2}\n", "", ""},
		{"a server joins", "cairn: {role: server, server_url: 'https://a', token: hunter2}\n", "", ""},
		{"k3OS", "k3os: {token: hunter2}\n", "", ""},
		{"k3OS's arguments", "k3os: {k3s_args: [server, --token, hunter2]}\n", "", ""},
		{"k3OS by line", "#\n", "k3os.token=hunter2", ""},
		{"Cairn's over k3OS's", "k3os: {token: hunter22}\n", "cairn.token=hunter2", "kernel command line: cairn.token: " + problem},
	} {
		c, document, err := Merge([]Source{{Name: "seed", Data: []byte(tt.document)}, CommandLine(cmdline.Parse(tt.line))})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || err != nil && c != nil {
			t.Errorf("%s: Merge: %q; want %q", tt.name, got, tt.want)
		}
		if err != nil {
			continue
		}
		if _, err := Parse("merged", document); err != nil {
			t.Errorf("%s: Parse of the merged document: %v", tt.name, err)
		}
	}
	// A machine that has run with a short token starts again.
	if _, err := Parse("last good", []byte("cairn: {token: hunter2}\n")); err != nil {
		t.Errorf("Parse: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct {
		name, document, line string
		want                 []string // how each one begins
	}{
		{"none", "cairn: {token: 1234567890123456}\n", "hostname=a", nil},
		{"joins with a short one", "cairn: {server_url: 'https://a', token: hunter2}\n", "", nil},
		{"short", "k3os: {token: hunter2}\n", "", []string{"cairn.token has less than 16 characters"}},
		{"line", "#\n", "cairn.token=1234567890123456", []string{"cairn.token is on the kernel command line"}},
		{"line, as an agent", "cairn: {server_url: 'https://a'}\n", "k3os.token=1234567890123456", []string{"cairn.token is on the kernel command line"}},
		{"line, overridden", "cairn: {token: 1234567890123456}\n", "cairn.token=6543210987654321", []string{"cairn.token is on the kernel command line"}},
		{"line, as k3s's argument", "#\n", "k3os.k3s_args=server k3os.k3s_args=--token=hunter2", []string{"cairn.token is on the kernel command line", "cairn.token has less"}},
	} {
		line := cmdline.Parse(tt.line)
		c, _, err := Merge([]Source{CommandLine(line), {Name: "seed", Data: []byte(tt.document)}})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := Warnings(c, line)
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], tt.want[i]) || strings.Contains(got[i], "hunter2") || strings.Contains(got[i], "1234567890123456") {
				t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
			}
		}
	}
}
