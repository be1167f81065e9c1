package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// bad documents with all that is reported about them, one "line: path: problem" per line.
var bad = []struct{ name, text, want string }{
	// Shape
	{"unknown key", "hostname: a\nhostnmae: b\n", "2: hostnmae: unknown key; did you mean hostname?"},
	{"unknown key below", "cairn:\n  lables: {}\n", "2: cairn.lables: unknown key; did you mean labels?"},
	{"unknown in list", "write_files:\n- path: /a\n  contnt: x\n", "3: write_files[0].contnt: unknown key; did you mean content?"},
	{"unknown far off", "write_files:\n- path: /a\n  zzzzz: x\n", "3: write_files[0].zzzzz: unknown key; known here: path, content, encoding, owner, permissions"},
	{"no fuzz in new keys", "cairn:\n  network:\n    nameserver: [10.0.0.1]\n", "3: cairn.network.nameserver: unknown key; did you mean nameservers?"},
	{"hyphen", "run-cmd: [a]\n", "1: run-cmd: unknown key; did you mean run_cmd?"},
	{"misplaced", "labels: {a: b}\ncairn:\n  hostname: a\n", "1: labels: unknown key here; it belongs below cairn\n3: cairn.hostname: unknown key here; it belongs to the top level"},
	{"k3OS key", "boot_cmd: [a]\nk3os: {password: hunter2, wifi: []}\n",
		"1: boot_cmd: not supported; use run_cmd, which runs once the network is up\n" +
			"2: cairn.password: not supported: no account has a password; use ssh_authorized_keys\n" +
			"2: cairn.wifi: not supported yet"},
	{"odd key", "\"a\\nb\": 1\n", `1: "a\nb": unknown key; known here: hostname, ssh_authorized_keys, write_files, run_cmd, cairn`},
	{"duplicate", "hostname: a\nrun_cmd: [b]\nhostname: c\n", "3: hostname: given twice, first on line 1"},
	{"duplicate by spelling", "run_cmd: [a]\nruncmd: [b]\n", "2: run_cmd: given twice, first as run_cmd on line 1"},
	{"duplicate label", "cairn:\n  labels:\n    a: x\n    a: y\n", "4: cairn.labels.a: given twice, first on line 3"},
	{"both prefixes", "cairn: {}\nk3os: {}\n", "2: cairn: given twice, first as cairn on line 1"},
	{"second document", "hostname: a\n---\nhostname: b\n", "2: a second document starts here; want one"},
	{"second empty document", "hostname: a\n---\n", "2: a second document starts here; want one"},
	{"second broken document", "hostname: a\n---\n{\n", "3: not YAML: did not find expected node content"},
	{"list at top", "- a\n", "1: want keys and values at the top, got a list"},
	{"text at top", "hello\n", "1: want keys and values at the top, got text"},
	{"complex key", "? [a]\n: b\n", "1: want a word as the key, got a list"},
	{"null key", "cairn: {~: x}\n", "1: cairn: want a word as the key, got nothing"},
	{"merge key", "cairn:\n  <<: {token: a}\n", "2: cairn: want a word as the key, got <<: merging is not supported, write the values out"},
	{"anchor", "hostname: &h a\n", "1: anchors (&name) are not supported: write the value out where it is used"},
	{"alias", "a: &h b\nhostname: *h\n", "1: anchors (&name) are not supported: write the value out where it is used"},
	{"alias without anchor", "cairn:\n  token: *hunter2\n", "aliases (*name) are not supported: write the value out"},
	{"tag", "hostname: !secret a\n", `1: tag "!secret" is not supported`},
	{"binary", "cairn:\n  token: !!binary aGVsbG8=\n", `2: tag "!!binary" is not supported`},
	{"set", "cairn: !!set {a}\n", `1: tag "!!set" is not supported`},
	// Types
	{"list for text", "hostname: [a]\n", "1: hostname: want text, got a list"},
	{"mapping for text", "cairn:\n  token: {a: b}\n", "2: cairn.token: want text, got keys and values"},
	{"text for mapping", "cairn: yes\n", "1: cairn: want keys and values, got text"},
	{"number for mapping", "cairn: {labels: 7}\n", "1: cairn.labels: want keys and values, got a number"},
	{"list for mapping", "cairn:\n  labels:\n  - a=b\n", "3: cairn.labels: want keys and values, got a list"},
	{"mapping for list", "run_cmd: {a: b}\n", "1: run_cmd: want a list, got keys and values"},
	{"text for list of mappings", "write_files: /etc/motd\n", "1: write_files: want a list, got text"},
	{"text in list of mappings", "write_files:\n- /etc/motd\n-\n", "2: write_files[0]: want keys and values, got text\n3: write_files[1]: an empty entry"},
	{"list in list", "run_cmd:\n- [sh, -c, a]\n", "2: run_cmd[0]: want text, got a list"},
	{"no value", "hostname:\ncairn: {labels: {a: }}\nrun_cmd: [~]\n", "1: hostname: no value; write \"\" for an empty one, or delete the key\n" +
		"2: cairn.labels.a: no value; write \"\" for an empty one, or delete the key\n3: run_cmd[0]: no value; write \"\" for an empty one, or delete the key"},
	{"bool", "cairn: {network: {interfaces: {eth0: {dhcp: yes}}}}\n", `1: cairn.network.interfaces.eth0.dhcp: want true or false, got "yes"`},
	{"int", "cairn: {network: {interfaces: {eth0: {dhcp: true, mtu: 1.5e3}}}}\n", `1: cairn.network.interfaces.eth0.mtu: want a whole number, got "1.5e3"`},
	{"int overflow", "cairn: {network: {interfaces: {eth0: {dhcp: true, mtu: 99999999999999999999}}}}\n", `1: cairn.network.interfaces.eth0.mtu: want a whole number, got "99999999999999999999"`},
	{"octal int", "cairn: {network: {interfaces: {eth0: {dhcp: true, mtu: 01400}}}}\n", `1: cairn.network.interfaces.eth0.mtu: want a whole number, got "01400"`},
	// Values
	{"hostname", "hostname: Till_07\n", `1: hostname: want at most 63 lower-case letters, digits and - . (RFC 1123), got "Till_07"`},
	{"hostname empty", "hostname: ''\n", `1: hostname: want at most 63 lower-case letters, digits and - . (RFC 1123), got ""`},
	{"hostname dash", "hostname: -a\n", `1: hostname: want at most 63 lower-case letters, digits and - . (RFC 1123), got "-a"`},
	{"hostname newline", "hostname: \"a\\n\"\n", `1: hostname: want at most 63 lower-case letters, digits and - . (RFC 1123), got "a\n"`},
	{"zero byte", "run_cmd: [\"a\\0b\"]\n", "1: run_cmd[0]: want text without a zero byte"},
	{"ssh link", "ssh_authorized_keys: ['github:storeops']\n", `1: ssh_authorized_keys[0]: keys behind a link are not supported yet; want the public key itself`},
	{"ssh key", "ssh_authorized_keys:\n- ssh-ed25519 AAAA\n", `2: ssh_authorized_keys[0]: want a public key such as: ssh-ed25519 AAAA... comment`},
	{"ssh key type", "ssh_authorized_keys:\n- " + strings.Replace(key, "ed25519", "rsa", 1) + "\n", `2: ssh_authorized_keys[0]: want a public key such as: ssh-ed25519 AAAA... comment`},
	{"ssh private key", "ssh_authorized_keys:\n- |\n  -----BEGIN OPENSSH PRIVATE KEY-----\n  hunter2\n", "2: ssh_authorized_keys[0]: this looks like a private key; want the public one"},
	{"file path", "write_files:\n- {path: etc/motd}\n- {path: /etc/../motd}\n- {path: /}\n- {content: a}\n",
		"2: write_files[0].path: want an absolute path without . and .., got \"etc/motd\"\n" +
			"3: write_files[1].path: want an absolute path without . and .., got \"/etc/../motd\"\n" +
			"4: write_files[2].path: want an absolute path without . and .., got \"/\"\n5: write_files[3]: want a path"},
	{"file permissions", "write_files:\n- {path: /a, permissions: rw-r--r--}\n- {path: /a, permissions: 0o644}\n- {path: /a, permissions: '0888'}\n",
		"2: write_files[0].permissions: want octal digits such as 0644, got \"rw-r--r--\"\n" +
			"3: write_files[1].permissions: want octal digits such as 0644, got \"0o644\"\n4: write_files[2].permissions: want octal digits such as 0644, got \"0888\""},
	{"file owner", "write_files:\n- {path: /a, owner: 'root:'}\n", `2: write_files[0].owner: want user or user:group, by name or number, got "root:"`},
	{"file encoding", "write_files:\n- {path: /a, encoding: rot13}\n", `2: write_files[0].encoding: want b64, gz or gz+b64, got "rot13"`},
	{"file not base64", "write_files:\n- path: /a\n  encoding: b64\n  content: hunter2!\n", "4: write_files[0].content: not base64, as encoding says"},
	{"file not gzip", "write_files:\n- path: /a\n  encoding: gz+b64\n  content: aGVsbG8=\n", "4: write_files[0].content: not gzip, as encoding says"},
	{"file no content", "write_files:\n- path: /a\n  encoding: gz\n", "2: write_files[0].content: not gzip, as encoding says"},
	{"file cut gzip", "write_files:\n- path: /a\n  encoding: gz+b64\n  content: H4sIAAAAAAAAA8tIzcnJ\n", "4: write_files[0].content: damaged gzip data"},
	{"empty command", "run_cmd: ['', ' ']\n", "1: run_cmd[0]: want a command\n1: run_cmd[1]: want a command"},
	{"token", "cairn:\n  token: hunter2 with spaces\n", "2: cairn.token: want 1 to 512 letters, digits and signs without a space"},
	{"label key", "cairn:\n  labels: {-a: b, a/b/c: d, A/b: c, kubernetes.io/role: x, node-role.kubernetes.io/till: ''}\n",
		"2: cairn.labels.-a: bad key: want at most 63 letters, digits and - _ . with a letter or digit at both ends\n" +
			"2: cairn.labels.a/b/c: bad key: want at most 63 letters, digits and - _ . with a letter or digit at both ends\n" +
			"2: cairn.labels.A/b: bad key: want a DNS name before the /\n" +
			"2: cairn.labels.kubernetes.io/role: bad key: a machine may not give itself labels below kubernetes.io, except node.kubernetes.io/...\n" +
			"2: cairn.labels.node-role.kubernetes.io/till: bad key: a machine may not give itself labels below kubernetes.io, except node.kubernetes.io/..."},
	{"label value", "cairn:\n  labels: {a: a b}\n", `2: cairn.labels.a: want at most 63 letters, digits and - _ . with a letter or digit at both ends, got "a b"`},
	{"taint", "cairn:\n  taints: [a, 'a=b', 'a=b:Never', '=b:NoSchedule', 'a=b c:NoSchedule']\n",
		strings.Join(each("2: cairn.taints[%d]: want key=value:Effect or key:Effect, where Effect is NoSchedule, PreferNoSchedule or NoExecute, got %q", "a", "a=b", "a=b:Never", "=b:NoSchedule", "a=b c:NoSchedule"), "\n")},
	{"sysctl", "cairn:\n  sysctls: {ip_forward: 1, ../../etc/passwd: 1, net..x: 1}\n",
		"2: cairn.sysctls.ip_forward: bad key: want the name of a kernel parameter such as net.ipv4.ip_forward\n" +
			"2: cairn.sysctls.../../etc/passwd: bad key: want the name of a kernel parameter such as net.ipv4.ip_forward\n" +
			"2: cairn.sysctls.net..x: bad key: want the name of a kernel parameter such as net.ipv4.ip_forward"},
	{"sysctl value", "cairn:\n  sysctls: {a.b: \"1\\n2\"}\n", `2: cairn.sysctls.a.b: want one line, got "1\n2"`},
	{"module", "cairn: {modules: [../evil]}\n", `1: cairn.modules[0]: want the name of a kernel module, perhaps followed by parameters, got "../evil"`},
	{"nameserver", "cairn: {dns_nameservers: [dns.example.com, 0.0.0.0, 10.0.0.256]}\n",
		strings.Join(each("1: cairn.dns_nameservers[%d]: want an IP address, got %q", "dns.example.com", "0.0.0.0", "10.0.0.256"), "\n")},
	{"ntp", "cairn: {ntp_servers: ['a b']}\n", `1: cairn.ntp_servers[0]: want an IP address or a host name, got "a b"`},
	{"environment", "cairn:\n  environment: {a-b: c, PASS: \"hunter2\\n\"}\n",
		"2: cairn.environment.a-b: bad key: want a variable's name: letters, digits and _\n2: cairn.environment.PASS: want one line"},
	{"interface name", "cairn: {network: {interfaces: {a/b: {dhcp: true}}}}\n", "1: cairn.network.interfaces.a/b: bad key: want an interface's name: at most 15 letters, digits and . _ -"},
	{"interface empty", "cairn:\n  network:\n    interfaces:\n      eth0: {dhcp: false}\n", "4: cairn.network.interfaces.eth0: want dhcp: true or addresses"},
	{"interface both", "cairn:\n  network:\n    interfaces:\n      eth0: {dhcp: true, addresses: [10.0.0.1/8]}\n", "4: cairn.network.interfaces.eth0.addresses: an IPv4 address beside dhcp: true; want one of the two"},
	{"address without prefix", "cairn: {network: {interfaces: {eth0: {addresses: 10.0.0.1}}}}\n", `1: cairn.network.interfaces.eth0.addresses: want an address with its prefix length such as 192.0.2.7/24, got "10.0.0.1"`},
	{"address prefix", "cairn: {network: {interfaces: {eth0: {addresses: [10.0.0.1/33]}}}}\n", `1: cairn.network.interfaces.eth0.addresses[0]: want an address with its prefix length such as 192.0.2.7/24, got "10.0.0.1/33"`},
	{"gateway outside", "cairn: {network: {interfaces: {eth0: {addresses: [10.0.0.2/24], gateway: 10.0.1.1}}}}\n", `1: cairn.network.interfaces.eth0.gateway: is in no network of addresses, got "10.0.1.1"`},
	{"route", "cairn: {network: {interfaces: {eth0: {dhcp: true, routes: [{to: 10.0.0.1/8, via: 10.0.0.2}, {to: 10.0.0.0/8}, {to: '2001:db8::/32', via: 10.0.0.1}, {to: 10.0.0.0/8, via: 10.0.0.1, metric: -1}]}}}}\n",
		`1: cairn.network.interfaces.eth0.routes[0].to: want a network such as 10.0.0.0/8, without bits below the prefix, got "10.0.0.1/8"` + "\n" +
			"1: cairn.network.interfaces.eth0.routes[1]: want via, the next hop\n1: cairn.network.interfaces.eth0.routes[2].via: IPv4 and IPv6 in one route\n" +
			`1: cairn.network.interfaces.eth0.routes[3].metric: want 0 to 2147483647, got "-1"`},
	{"mac", "cairn: {network: {interfaces: {lan: {mac: '52:54:00', dhcp: true}}}}\n", `1: cairn.network.interfaces.lan.mac: want a hardware address such as 52:54:00:12:34:56, got "52:54:00"`},
	// Text
	{"tab", "cairn:\n\ttoken: a\n", "2: indented with a tab; use spaces"},
	{"syntax", "hostname: [a\nrun_cmd: b\n", "1: not YAML: did not find expected ',' or ']'"},
	{"script", "#!/bin/sh\necho\n", "1: this is a script; want a cloud-config document, which may hold it under run_cmd or write_files"},
	{"binary junk", "\x7fELF\x02\x01\x01\x00\x00", "1: a zero byte: this is not a text file"},
	{"junk below", "hostname: a\n\n\xff\xfe\x80", "3: byte 0xff is not UTF-8"},
	{"latin-1", "hostname: a\n# Fl\xe4che\n", "2: byte 0xe4 is not UTF-8"},
	{"UTF-16", "\xff\xfeh\x00o\x00", "1: this is UTF-16; save the file as UTF-8"},
	{"control", "hostname: a\x01b\n", "not YAML: control characters are not allowed"},
}

func each(format string, values ...string) []string {
	var all []string
	for i, v := range values {
		all = append(all, strings.NewReplacer("%d", string(rune('0'+i)), "%q", `"`+v+`"`).Replace(format))
	}
	return all
}

func TestBad(t *testing.T) {
	for _, tt := range slices.Concat(bad, badCluster, badUpgrade, badHealth) {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("f", []byte(tt.text))
			if c != nil {
				t.Errorf("half decoded: %v", c)
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("error = %v; want Problems", err)
			}
			var lines []string
			for _, l := range strings.Split(tt.want, "\n") {
				lines = append(lines, strings.Replace("f:"+l, "f:not", "f: not", 1))
			}
			want := strings.Replace(strings.Join(lines, "\n"), "f:aliases", "f: aliases", 1)
			if diff := cmp.Diff(want, err.Error()); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret in %v", err)
			}
		})
	}
}

// TestHuge feeds a parser what makes a careless one overflow its stack or take quadratic time.
func TestHuge(t *testing.T) {
	const size = 1_000_000
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + "]\n"
	}
	for name, text := range map[string]string{
		"lists":          strings.Repeat("[", size),
		"closed lists":   strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000),
		"mappings":       strings.Repeat("{", size),
		"named mappings": strings.Repeat("a: {", size/4),
		"dashes":         strings.Repeat("- ", size/2),
		"closed dashes":  strings.Repeat("- ", 9_000) + "a",
		"question marks": strings.Repeat("? ", size/2),
		"flow pairs":     strings.Repeat("{? ", size/3),
		"many keys":      strings.Repeat("a: b\n", size/5),
		"many items":     "run_cmd:\n" + strings.Repeat("- a\n", size/4),
		"staircase":      staircase(size),
		"aliases":        bomb,
		"anchors":        strings.Repeat("- &a a\n", size/7),
		"one line":       "hostname: " + strings.Repeat("a", size),
		"quotes":         strings.Repeat(`"`, size),
		"comments":       strings.Repeat("# a\n", size/4) + "a: b",
		"documents":      strings.Repeat("---\n", size/4) + "a",
		"tags":           strings.Repeat("!!a ", size/4),
		"colons":         strings.Repeat(": ", size/2),
		"too large":      strings.Repeat("#", MaxSize+1),
		"blank lines":    "write_files:\n- content: |\n" + strings.Repeat("\n", size) + "   x\n  y",
		"bad key":        strings.Repeat("k", size) + ": x",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			c, err := Parse("f", []byte(text))
			if err == nil || c != nil {
				t.Errorf("no error, %v", c)
			} else if len(err.Error()) > 8_000 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			} else {
				t.Logf("%v: %.200v", took, err)
			}
		})
	}
}

func staircase(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	for _, tt := range slices.Concat(bad, badCluster, badUpgrade, badHealth) {
		f.Add([]byte(tt.text))
	}
	f.Add([]byte(k3sDocument))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		var problems Problems
		switch {
		case err != nil && c != nil:
			t.Fatal("half decoded")
		case err == nil:
			round(t, c)
			_, text, err := Merge([]Source{{Name: "f\n: -", Data: data}})
			if err != nil {
				t.Fatal(err)
			}
			again, err := Parse("merged", text)
			if diff := cmp.Diff(c, again, cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Fatalf("%v %s of\n%s", err, diff, text)
			}
		case errors.Is(err, ErrNoConfig):
		case !errors.As(err, &problems) || len(problems) == 0:
			t.Fatalf("error %v is no list of problems", err)
		}
	})
}
