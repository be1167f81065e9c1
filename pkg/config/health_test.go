package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	wantSelector = "want a label selector such as app=till or app in (till,scale)"
	wantProgram  = "want the absolute path of a program first, and each argument as an entry of its own"
)

var badHealth = []struct{ name, text, want string }{
	{"health key", "cairn: {health: {dedline: 10m}}\n", "1: cairn.health.dedline: unknown key; did you mean deadline?"},
	{"deadline", "cairn: {health: {deadline: 30s}}\n", `1: cairn.health.deadline: want a time such as 10m, at least 1m and at most 2h, got "30s"`},
	{"deadline a number", "cairn: {health: {deadline: 600}}\n", `1: cairn.health.deadline: want a time such as 10m, at least 1m and at most 2h, got "600"`},
	{"settle", "cairn: {health: {settle: -1s}}\n", `1: cairn.health.settle: want a time such as 30s, at least 0s and at most 1h, got "-1s"`},
	{"settle too long", "cairn:\n  health:\n    settle: 9m31s\n", "3: cairn.health.settle: want settle to end at least 30s before the deadline; they are 9m31s and 10m0s"},
	{"pods as text", "cairn: {health: {critical_pods: shop}}\n", "1: cairn.health.critical_pods: want a list, got text"},
	{"pods without namespace", "cairn:\n  health:\n    critical_pods:\n    - selector: app=till\n", "4: cairn.health.critical_pods[0]: want a namespace"},
	{"pods' namespace", "cairn: {health: {critical_pods: [{namespace: Shop}]}}\n", `1: cairn.health.critical_pods[0].namespace: want the name of a namespace: at most 63 lower-case letters, digits and -, got "Shop"`},
	{"pods' selector", "cairn: {health: {critical_pods: [{namespace: a, selector: 'a='}, {namespace: a, selector: 'a=b&c=d'}]}}\n", "1: cairn.health.critical_pods[1].selector: " + wantSelector + `, got "a=b&c=d"`},
	{"pods twice", "cairn:\n  health:\n    critical_pods:\n    - {namespace: a}\n    - {namespace: a, selector: ''}\n", "5: cairn.health.critical_pods[1]: these are given twice"},
	{"probe without name", "cairn: {health: {probes: [{tcp: 'a:1'}]}}\n", "1: cairn.health.probes[0]: want a name"},
	{"probe name", "cairn: {health: {probes: [{name: a b, tcp: 'a:1'}]}}\n", `1: cairn.health.probes[0].name: want at most 63 letters, digits and - _ . with a letter or digit at both ends, got "a b"`},
	{"probe twice", "cairn:\n  health:\n    probes:\n    - {name: a, tcp: 'a:1'}\n    - {name: a, tcp: 'b:1'}\n", "5: cairn.health.probes[1]: another probe has this name, too"},
	{"probe of none", "cairn: {health: {probes: [{name: a}]}}\n", "1: cairn.health.probes[0]: want exactly one of http, tcp and exec"},
	{"probe of two", "cairn: {health: {probes: [{name: a, tcp: 'a:1', exec: [/a]}]}}\n", "1: cairn.health.probes[0]: want exactly one of http, tcp and exec"},
	{"probe timeout", "cairn: {health: {probes: [{name: a, tcp: 'a:1', timeout: 2m}]}}\n", `1: cairn.health.probes[0].timeout: want a time such as 5s, at least 100ms and at most 1m, got "2m"`},
	{"http without url", "cairn: {health: {probes: [{name: a, http: {status: 200}}]}}\n", "1: cairn.health.probes[0].http: want a url"},
	{"http empty", "cairn: {health: {probes: [{name: a, http: {}}]}}\n", "1: cairn.health.probes[0].http: want a url"},
	{"http as text", "cairn: {health: {probes: [{name: a, http: 'http://hunter2'}]}}\n", "1: cairn.health.probes[0].http: want keys and values, got text"},
	{"http url", "cairn: {health: {probes: [{name: a, http: {url: 'till:hunter2@b'}}]}}\n", "1: cairn.health.probes[0].http.url: want http://HOST:PORT/PATH or https://HOST:PORT/PATH"},
	{"http status", "cairn: {health: {probes: [{name: a, http: {url: 'http://a', status: 99}}]}}\n", `1: cairn.health.probes[0].http.status: want 100 to 599, got "99"`},
	{"http host", "cairn: {health: {probes: [{name: a, http: {url: 'http://a', host: a/b}}]}}\n", `1: cairn.health.probes[0].http.host: want an IP address or a host name, got "a/b"`},
	{"tcp", "cairn: {health: {probes: [{name: a, tcp: '8080'}, {name: b, tcp: ':8080'}, {name: c, tcp: 'a:0'}]}}\n",
		strings.Join(each("1: cairn.health.probes[%d].tcp: want HOST:PORT such as 127.0.0.1:8080, got %q", "8080", ":8080", "a:0"), "\n")},
	{"exec empty", "cairn: {health: {probes: [{name: a, exec: []}]}}\n", "1: cairn.health.probes[0].exec: want the absolute path of a program"},
	{"exec relative", "cairn:\n  health:\n    probes:\n    - name: a\n      exec: [check, hunter2]\n", "5: cairn.health.probes[0].exec[0]: " + wantProgram},
	{"exec in one", "cairn: {health: {probes: [{name: a, exec: /bin/check hunter2}]}}\n", "1: cairn.health.probes[0].exec[0]: " + wantProgram},
	{"too many", "cairn:\n  health:\n    critical_pods:\n" + strings.Repeat("    - {namespace: a}\n", 16) + "    - {namespace: b}\n", tooMany()},
}

func tooMany() string {
	want := "20: cairn.health.critical_pods[16]: at most 16 of them"
	for i := range 15 {
		want += fmt.Sprintf("\n%d: cairn.health.critical_pods[%d]: these are given twice", 5+i, 1+i)
	}
	return want
}

func TestHealthDefaults(t *testing.T) {
	var h Health
	if h.Deadline() != 10*time.Minute || h.Settle() != 30*time.Second || (Probe{}).Timeout() != 5*time.Second {
		t.Errorf("defaults: deadline %s, settle %s, timeout %s", h.Deadline(), h.Settle(), Probe{}.Timeout())
	}
	h = wantFull.Cairn.Health
	if h.Deadline() != 15*time.Minute || h.Settle() != time.Minute || h.Probes[0].Timeout() != 10*time.Second {
		t.Errorf("given: deadline %s, settle %s, timeout %s", h.Deadline(), h.Settle(), h.Probes[0].Timeout())
	}
	if h := (Health{SettleText: "0s"}); h.Settle() != 0 {
		t.Errorf("settle 0s is %s", h.Settle())
	}
	if got := h.CriticalPods[0].String() + "; " + h.CriticalPods[1].String(); got != "shop app=till,tier in (front, back); kube-system" {
		t.Errorf("critical pods are called %q", got)
	}
	if got := (HTTPProbe{URL: "http://u:hunter2@a:1/b?c=hunter2"}).ShownURL(); got != "http://a:1/b" {
		t.Errorf("ShownURL() = %q", got)
	}
}

func TestSelector(t *testing.T) {
	for v, good := range map[string]bool{
		"": true, "app": true, "!app": true, "app=till": true, "app==till": true, "app!=till": true, "app=": true,
		"app=till,tier=front": true, "app in (till, scale),!old": true, "example.com/a notin (b)": true, "n>3": true, "n < -4": true, " app = till ": true,
		"app in ()": true, "x in (,a)": true,
		" ": false, ",": false, "a,": false, "a=b,,c": false, "a=b c": false, "a in b": false, "a in (b": false, "a in b)": false, "a=b)": false,
		"a in (b c)": false, "a>b": false, "=b": false, "!": false, "!a=b": false, "a b": false, "A/b=c": false, "a=b\nc": false, "a=-": false,
		"a===b": false, "in (a)": false, strings.Repeat("a", 64): false, "a in ((b))": false,
	} {
		if message := selector(v); (message == "") != good {
			t.Errorf("selector(%q) = %q; want it good: %v", v, message, good)
		}
	}
}

func FuzzSelector(f *testing.F) {
	for _, v := range []string{"app=till", "a in (b,c),!d", "n>3", "(,)", "a notin ("} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if selector(v) == "" && strings.ContainsAny(v, "\n\r&?#\x00\"") {
			t.Errorf("selector %q is taken", v)
		}
	})
}
