package config

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Health says when a release that was just booted is good enough to stay.
type Health struct {
	// DeadlineText is how long after power-on the machine must have become healthy; see Deadline.
	DeadlineText string `yaml:"deadline,omitempty" check:"deadline"`
	// SettleText is how long all checks must pass without a break; see Settle.
	SettleText string `yaml:"settle,omitempty" check:"settle"`
	// CriticalPods are the pods of this machine that must be Ready. Empty: those of kube-system.
	CriticalPods []CriticalPods `yaml:"critical_pods,omitempty"`
	// Probes are the owner's own checks.
	Probes []Probe `yaml:"probes,omitempty"`
}

// CriticalPods are pods that the machine cannot be healthy without.
type CriticalPods struct {
	Namespace string `yaml:"namespace,omitempty" check:"namespace"`
	// Selector is a label selector as kubectl takes it: "app=till,tier in (front,back)". Empty: all of the namespace.
	Selector string `yaml:"selector,omitempty" check:"selector"`
}

// String names the pods for people, and for what is kept of them.
func (p CriticalPods) String() string {
	if p.Selector == "" {
		return p.Namespace
	}
	return p.Namespace + " " + p.Selector
}

// Probe is a check of the owner's: exactly one of HTTP, TCP and Exec.
type Probe struct {
	// Name is what the probe is called where its outcome is told.
	Name string    `yaml:"name,omitempty" check:"probeName"`
	HTTP HTTPProbe `yaml:"http,omitempty"`
	// TCP is HOST:PORT that must take a connection.
	TCP string `yaml:"tcp,omitempty" check:"hostPort"`
	// Exec is a program by its absolute path, and its arguments. It must end with 0. Secret, for arguments hold passwords.
	Exec []string `yaml:"exec,omitempty" check:"oneArgument" secret:""`
	// TimeoutText is how long one try may take; see Timeout.
	TimeoutText string `yaml:"timeout,omitempty" check:"probeTimeout"`
}

// HTTPProbe is a GET that must be answered. Redirects are not followed: they are an answer.
type HTTPProbe struct {
	// URL is http:// or https://. Secret, for it may hold a name and password; see ShownURL.
	URL string `yaml:"url,omitempty" check:"webURL" secret:""`
	// Status is the one that must come. 0: any of 200 to 299.
	Status int `yaml:"status,omitempty" check:"httpStatus"`
	// Host is asked for instead of the URL's, also by TLS: for an ingress, which tells its sites apart by it.
	Host string `yaml:"host,omitempty" check:"host"`
	// Insecure takes any certificate.
	Insecure bool `yaml:"insecure,omitempty"`
}

// What holds for a machine that is not told otherwise.
const (
	DefaultDeadline     = 10 * time.Minute
	DefaultSettle       = 30 * time.Second
	DefaultProbeTimeout = 5 * time.Second
)

// maxChecks bounds critical pods and probes each: what they find is kept, and shown.
const maxChecks = 16

// minJudging is the least time that must be left of the deadline for the boot itself and the first looks.
const minJudging = 30 * time.Second

// Deadline is how long after power-on a release on trial must have become healthy. Else the machine goes back.
func (h Health) Deadline() time.Duration { return orTime(h.DeadlineText, DefaultDeadline) }

// Settle is how long all checks must pass without a break.
func (h Health) Settle() time.Duration { return orTime(h.SettleText, DefaultSettle) }

// Timeout is how long one try of the probe may take.
func (p Probe) Timeout() time.Duration { return orTime(p.TimeoutText, DefaultProbeTimeout) }

// ShownURL is URL without what may be secret in it: user, password and query.
func (p HTTPProbe) ShownURL() string { return shownURL(p.URL) }

// webURL checks the form. Its words never quote the value.
func webURL(v string) string {
	u, err := url.Parse(v)
	return unless(err == nil && (u.Scheme == "http" || u.Scheme == "https") && webHost(u) && !strings.Contains(v, "#"),
		"want http://HOST:PORT/PATH or https://HOST:PORT/PATH")
}

func hostPort(v string) string {
	name, service, err := net.SplitHostPort(v)
	return unless(err == nil && host(name) == "" && port(service), "want HOST:PORT such as 127.0.0.1:8080")
}

// namespace is an RFC 1123 label, as Kubernetes' ValidateNamespaceName has it.
var namespace = matches(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`, "want the name of a namespace: at most 63 lower-case letters, digits and -")

// program checks the first word of a command. Its words never quote the value.
func program(v string) string {
	return unless(path.IsAbs(v) && path.Clean(v) == v && v != "/" && !strings.ContainsFunc(v, unicode.IsSpace),
		"want the absolute path of a program first, and each argument as an entry of its own")
}

// requirement is one condition of a label selector, as k8s.io/apimachinery/pkg/labels parses it.
var requirement = regexp.MustCompile(`^ *(?:!? *([^ !=<>(),]+)|([^ !=<>(),]+) *(?:=|==|!=) *([^ !=<>(),]*)|([^ !=<>(),]+) *[<>] *-?[0-9]{1,18}|([^ !=<>(),]+) +(?:in|notin) *\(([^()]*)\)) *$`)

// selector takes what the apiserver takes, which is asked with it.
func selector(v string) string {
	const want = "want a label selector such as app=till or app in (till,scale)"
	if oneLine(v) != "" || len(v) > 1024 {
		return want
	}
	if strings.TrimSpace(v) == "" {
		return unless(v == "", want)
	}
	for _, one := range outerCommas(v) {
		m := requirement.FindStringSubmatch(one)
		if m == nil || qualified(m[1]+m[2]+m[4]+m[5]) != "" || labelValue(m[3]) != "" {
			return want
		}
		for _, value := range strings.Split(m[6], ",") {
			if labelValue(strings.TrimSpace(value)) != "" {
				return want
			}
		}
	}
	return ""
}

// outerCommas splits v at the commas that are in no parentheses.
func outerCommas(v string) []string {
	depth := 0
	var all []string
	from := 0
	for i, c := range []byte(v) {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				all = append(all, v[from:i])
				from = i + 1
			}
		}
	}
	return append(all, v[from:])
}

func wholeHealth(r *reader, n *yaml.Node, at string) {
	for _, key := range []string{"critical_pods", "probes"} {
		if list := get(n, key); list != nil && len(list.Content) > maxChecks {
			r.problem(list.Content[maxChecks], element(join(at, key), maxChecks), fmt.Sprintf("at most %d of them", maxChecks))
		}
	}
	r.unique(get(n, "probes"), join(at, "probes"), "another probe has this name, too", func(one *yaml.Node) string {
		return get(one, "name").Value // wholeProbe wants one
	})
	r.unique(get(n, "critical_pods"), join(at, "critical_pods"), "these are given twice", func(one *yaml.Node) string {
		p := CriticalPods{Namespace: get(one, "namespace").Value}
		if s := get(one, "selector"); s != nil {
			p.Selector = s.Value
		}
		return p.String()
	})
}

// unique wants the mappings of the list to differ in what of takes of them.
func (r *reader) unique(list *yaml.Node, at, message string, of func(*yaml.Node) string) {
	if list == nil {
		return
	}
	seen := map[string]bool{}
	for i, one := range list.Content {
		if what := of(one); seen[what] {
			r.problem(one, element(at, i), message)
		} else {
			seen[what] = true
		}
	}
}

func wholeCriticalPods(r *reader, n *yaml.Node, at string) {
	if get(n, "namespace") == nil {
		r.problem(n, at, "want a namespace")
	}
}

func wholeProbe(r *reader, n *yaml.Node, at string) {
	kinds := 0
	for _, key := range []string{"http", "tcp", "exec"} {
		if get(n, key) != nil {
			kinds++
		}
	}
	command := get(n, "exec")
	switch {
	case get(n, "name") == nil:
		r.problem(n, at, "want a name")
	case kinds != 1:
		r.problem(n, at, "want exactly one of http, tcp and exec")
	case command != nil && len(command.Content) == 0:
		r.problem(n, join(at, "exec"), "want the absolute path of a program")
	case command != nil:
		if message := program(command.Content[0].Value); message != "" {
			r.problem(command.Content[0], element(join(at, "exec"), 0), message)
		}
	}
}

func wholeHTTPProbe(r *reader, n *yaml.Node, at string) {
	if get(n, "url") == nil {
		r.problem(n, at, "want a url")
	}
}

// checkUpgrades compares keys that may be of different sources.
func (m *merger) checkUpgrades(c Cairn) {
	if c.Upgrade.Auto && c.Upgrade.Source == "" {
		m.problem("upgrading without being told needs cairn.upgrade.source as well, where releases come from", "cairn", "upgrade", "auto")
	}
	if c.Health.Settle()+minJudging > c.Health.Deadline() {
		key := "settle"
		if c.Health.SettleText == "" {
			key = "deadline"
		}
		m.problem(fmt.Sprintf("want settle to end at least %s before the deadline; they are %s and %s", minJudging, c.Health.Settle(), c.Health.Deadline()),
			"cairn", "health", key)
	}
}
