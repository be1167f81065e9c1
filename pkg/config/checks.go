package config

import (
	"encoding/base64"
	"encoding/binary"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// checks are what the tags "check" and "keys" name. Each returns "" or what is wanted instead; the value itself is
// added by the caller unless it is a secret.
var checks = map[string]func(string) string{
	"":            func(string) string { return "" },
	"hostname":    hostname,
	"sshKey":      sshKey,
	"command":     command,
	"path":        filePath,
	"encoding":    encoding,
	"owner":       matches(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})(:([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}))?$`, "want user or user:group, by name or number"),
	"permissions": matches(`^0?[0-7]{3,4}$`, "want octal digits such as 0644"),
	"role":        matches(`^(server|agent|witness)$`, "want server, agent or witness"),
	"serverURL":   serverURL,
	"token":       joinToken,
	"labelKey":    labelKey,
	"labelValue":  labelValue,
	"taint":       taint,
	"sysctl":      sysctl,
	"oneLine":     oneLine,
	"module":      matches(`^[A-Za-z0-9_-]{1,55}( +[!-~]+)*$`, "want the name of a kernel module, perhaps followed by parameters"),
	"address":     address,
	"host":        host,
	"domain":      domain,
	"variable":    matches(`^[A-Za-z_][A-Za-z0-9_]*$`, "want a variable's name: letters, digits and _"),
	"interface":   matches(`^[A-Za-z0-9_.-]{1,15}$`, "want an interface's name: at most 15 letters, digits and . _ -"),
	"mac":         mac,
	"prefix":      prefix,
	"network":     network,
	"mtu":         between(68, 65535),
	"metric":      between(0, 1<<31-1),
	"endpoint":    endpoint,

	"podCIDR":         podCIDR,
	"serviceCIDR":     serviceCIDR,
	"flannel":         matches(`^(vxlan|host-gw|wireguard|none)$`, "want vxlan, host-gw, wireguard or none"),
	"nodeIP":          nodeIP,
	"battery":         battery,
	"certificateLife": certificateLife,
	"componentArg":    componentArg,

	"source":          source,
	"channel":         matches(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`, "want the name of a channel such as stable: at most 32 lower-case letters, digits and -"),
	"upgradeInterval": within("5m", "720h", "6h"),
	"rate":            rate,
	"day":             matches(`^(mon|tue|wed|thu|fri|sat|sun)$`, "want mon, tue, wed, thu, fri, sat or sun"),
	"timeOfDay":       matches(`^([01][0-9]|2[0-3]):[0-5][0-9]$`, "want a time of day in UTC such as 02:00"),
	"windowDuration":  within("10m", "24h", "3h"),

	"deadline":     within("1m", "2h", "10m"),
	"settle":       within("0s", "1h", "30s"),
	"namespace":    namespace,
	"selector":     selector,
	"probeName":    matches(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`, "want at most 63 letters, digits and - _ . with a letter or digit at both ends"),
	"webURL":       webURL,
	"httpStatus":   between(100, 599),
	"hostPort":     hostPort,
	"oneArgument":  func(v string) string { return unless(len(v) <= 4096, "want at most 4096 bytes") },
	"probeTimeout": within("100ms", "1m", "5s"),
}

func matches(expression, want string) func(string) string {
	re := regexp.MustCompile(expression)
	return func(v string) string { return unless(re.MatchString(v), want) }
}

func between(low, high int) func(string) string {
	want := "want " + strconv.Itoa(low) + " to " + strconv.Itoa(high)
	return func(v string) string {
		n, err := strconv.Atoi(v)
		return unless(err == nil && low <= n && n <= high, want)
	}
}

func unless(ok bool, want string) string {
	if ok {
		return ""
	}
	return want
}

var (
	dnsName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)
	labelName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// hostname is RFC 1123 in lower case, for it becomes the name of the Node; 63 is what Linux (64) and labels (63) allow.
func hostname(v string) string {
	return unless(len(v) <= 63 && dnsName.MatchString(v), "want at most 63 lower-case letters, digits and - . (RFC 1123)")
}

func domain(v string) string {
	return unless(len(v) <= 253 && dnsName.MatchString(strings.ToLower(v)), "want a DNS domain")
}

func host(v string) string {
	_, err := netip.ParseAddr(v)
	return unless(err == nil || domain(v) == "", "want an IP address or a host name")
}

func oneLine(v string) string { return unless(!strings.ContainsAny(v, "\n\r"), "want one line") }

func command(v string) string { return unless(strings.TrimSpace(v) != "", "want a command") }

func filePath(v string) string {
	return unless(path.IsAbs(v) && path.Clean(v) == v && v != "/" && oneLine(v) == "", "want an absolute path without . and ..")
}

func encoding(v string) string {
	_, ok := encodings[v]
	return unless(ok, "want b64, gz or gz+b64")
}

// sshKey takes a line of authorized_keys(5): perhaps options, the type, the key in base64, perhaps a comment.
func sshKey(v string) string {
	const want = "want a public key such as: ssh-ed25519 AAAA... comment"
	for _, form := range []string{"github:", "gitlab:", "http://", "https://"} {
		if strings.HasPrefix(v, form) {
			return "keys behind a link are not supported yet; want the public key itself"
		}
	}
	if strings.Contains(v, "PRIVATE KEY") {
		return "this looks like a private key; want the public one"
	}
	words := strings.Fields(v)
	at := slices.IndexFunc(words, func(w string) bool { return slices.Contains(keyTypes, w) })
	if oneLine(v) != "" || at < 0 || at+1 >= len(words) {
		return want
	}
	blob, err := base64.StdEncoding.DecodeString(words[at+1])
	if err != nil || len(blob) < 4 {
		return want
	}
	// The blob starts with its own type, RFC 4253 section 6.6.
	n := binary.BigEndian.Uint32(blob)
	if uint64(n) >= uint64(len(blob)-4) || string(blob[4:4+n]) != words[at] {
		return want
	}
	return ""
}

var keyTypes = []string{
	"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
	"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
}

// labelKey is Kubernetes' qualified name, less those that the kubelet refuses to start with (its --node-labels).
func labelKey(v string) string {
	if message := qualified(v); message != "" {
		return message
	}
	space, _, found := strings.Cut(v, "/")
	if found && reservedSpace(space) && !slices.Contains(kubeletLabels, v) {
		return "a machine may not give itself labels below kubernetes.io, except node.kubernetes.io/..."
	}
	return ""
}

// qualified is the form of a label's key: a name, perhaps with a DNS name and / before it.
func qualified(v string) string {
	name, space := v, ""
	if i := strings.IndexByte(v, '/'); i >= 0 {
		space, name = v[:i], v[i+1:]
		if len(space) > 253 || !dnsName.MatchString(space) {
			return "want a DNS name before the /"
		}
	}
	return unless(labelName.MatchString(name), "want at most 63 letters, digits and - _ . with a letter or digit at both ends")
}

func reservedSpace(space string) bool {
	under := func(domain string) bool { return space == domain || strings.HasSuffix(space, "."+domain) }
	return (under("kubernetes.io") || under("k8s.io")) && !under("node.kubernetes.io") && !under("kubelet.kubernetes.io")
}

// kubeletLabels are the exceptions of k8s.io/kubernetes/pkg/kubelet/apis/well_known_labels.go, v1.36.
var kubeletLabels = []string{
	"kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch",
	"topology.kubernetes.io/zone", "topology.kubernetes.io/region",
	"failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
	"beta.kubernetes.io/instance-type", "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

func labelValue(v string) string {
	return unless(v == "" || labelName.MatchString(v), "want at most 63 letters, digits and - _ . with a letter or digit at both ends")
}

// taint is key=value:Effect or key:Effect. Taints, unlike labels, are free below kubernetes.io.
func taint(v string) string {
	const want = "want key=value:Effect or key:Effect, where Effect is NoSchedule, PreferNoSchedule or NoExecute"
	front, effect, found := strings.Cut(v, ":")
	if !found || !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
		return want
	}
	key, value, _ := strings.Cut(front, "=")
	space, name, found := strings.Cut(key, "/")
	if !found {
		space, name = "", key
	}
	ok := labelName.MatchString(name) && (!found || len(space) <= 253 && dnsName.MatchString(space)) && labelValue(value) == ""
	return unless(ok, want)
}

var sysctlKey = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_:*-]+)+$`)

func sysctl(v string) string {
	return unless(len(v) <= 255 && sysctlKey.MatchString(v), "want the name of a kernel parameter such as net.ipv4.ip_forward")
}

func address(v string) string {
	a, err := netip.ParseAddr(v)
	return unless(err == nil && a.Zone() == "" && !a.IsUnspecified(), "want an IP address")
}

func prefix(v string) string {
	p, err := netip.ParsePrefix(v)
	return unless(err == nil && !p.Addr().IsUnspecified() && !p.Addr().IsMulticast(), "want an address with its prefix length such as 192.0.2.7/24")
}

func network(v string) string {
	p, err := netip.ParsePrefix(v)
	return unless(err == nil && p == p.Masked(), "want a network such as 10.0.0.0/8, without bits below the prefix")
}

func mac(v string) string {
	m, err := net.ParseMAC(v)
	return unless(err == nil && len(m) == 6, "want a hardware address such as 52:54:00:12:34:56")
}
