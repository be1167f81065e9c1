package control

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	text := strings.Join(got, "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text); d != "" {
		t.Errorf("%s (-update writes it): %s", path, d)
	}
}

func testOptions() Options {
	o := DefaultOptions("shop-1")
	o.Tunnels = false
	o.addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	return o
}

// fullOptions ask for everything that changes arguments.
func fullOptions() Options {
	o := testOptions()
	o.Settings.PodCIDRs = parsePrefixes("10.42.0.0/22", "fd42::/48")
	o.Settings.ServiceCIDRs = parsePrefixes("10.43.0.0/16", "fd43::/112")
	o.Settings.ClusterDomain = "shop.example"
	o.Life, o.Audit, o.Tunnels = 72*time.Hour, true, true
	return o
}

func parsePrefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestArguments(t *testing.T) {
	o := testOptions()
	golden(t, "apiserver", o.apiserverArguments())
	golden(t, "controller-manager", o.controllerManagerArguments())
	golden(t, "scheduler", o.schedulerArguments())
	o = fullOptions()
	golden(t, "apiserver-full", o.apiserverArguments())
	golden(t, "controller-manager-full", o.controllerManagerArguments())
}

func TestBindAddress(t *testing.T) {
	v6 := testOptions()
	v6.addresses, v6.Settings.ServiceCIDRs = []netip.Addr{netip.MustParseAddr("2001:db8::7")}, parsePrefixes("fd43::/112")
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{{"IPv4", testOptions(), "0.0.0.0"}, {"dual stack", fullOptions(), "::"}, {"IPv6", v6, "::"}} {
		if got := tt.o.bindAddress(); got != tt.want {
			t.Errorf("%s: bindAddress = %s; want %s", tt.name, got, tt.want)
		}
	}
}

func TestExtraArguments(t *testing.T) {
	scheduler := schedulerName
	for _, tt := range []struct {
		component, arg string
		want           string // the argument, or the error's text
	}{
		{apiserverName, "max-requests-inflight=50", "--max-requests-inflight=50"},
		{apiserverName, "--v=2", "--v=2"},
		{apiserverName, "enable_aggregator_routing=true", "--enable-aggregator-routing=true"},
		{apiserverName, "disable-http2-serving", "--disable-http2-serving"},
		{apiserverName, "etcd-servers=http://x", "cairn.cluster.kube_apiserver_args: etcd-servers cannot be set: use cairn.datastore"},
		{apiserverName, "requestheader-group-headers=X", "cairn.cluster.kube_apiserver_args: requestheader-group-headers cannot be set: Cairn makes and renews these files"},
		{apiserverName, "Client_ca-file=x", "--Client-ca-file=x"}, // upstream refuses it
		{apiserverName, "=x", `cairn.cluster.kube_apiserver_args: "=x": want name=value`},
		{managerName, "node-cidr-mask-size=25", "--node-cidr-mask-size=25"},
		{managerName, "leader-elect=true", "cairn.cluster.kube_controller_manager_args: leader-elect cannot be set: Cairn's own lease decides; upstream's would end the process when it is lost"},
		{managerName, "cluster_cidr=10.0.0.0/8", "cairn.cluster.kube_controller_manager_args: cluster-cidr cannot be set: use cairn.cluster.pod_cidr"},
		{scheduler, "secure-port=10259", "cairn.cluster.kube_scheduler_args: secure-port cannot be set: there is no port: the apiserver's /metrics tells about the whole process"},
		{scheduler, "config=/etc/s.yaml", "--config=/run/cairn/control/scheduler.yaml"},
	} {
		o := testOptions()
		switch tt.component {
		case apiserverName:
			o.Arguments.APIServer = []string{tt.arg}
		case managerName:
			o.Arguments.ControllerManager = []string{tt.arg}
		default:
			o.Arguments.Scheduler = []string{tt.arg}
		}
		all, err := o.extra(tt.component)
		got := strings.Join(all, " ")
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s %s: %s; want %s", tt.component, tt.arg, got, tt.want)
		}
	}
}

// TestExtraArgumentsChangeOurs looks at what Cairn leaves out when the operator says something of that kind.
func TestExtraArgumentsChangeOurs(t *testing.T) {
	o := testOptions()
	o.Arguments = Arguments{APIServer: []string{"oidc-issuer-url=https://x"}, ControllerManager: []string{"node-cidr-mask-size=26"}}
	for _, arg := range append(o.apiserverArguments(), o.controllerManagerArguments()...) {
		if strings.HasPrefix(arg, "--authentication-config") || strings.HasPrefix(arg, "--node-cidr-mask-size") {
			t.Errorf("%s is there, which upstream does not take together with the operator's", arg)
		}
	}
}

func TestSchedulerConfig(t *testing.T) {
	o := testOptions()
	o.RunDir = t.TempDir()
	file := filepath.Join(t.TempDir(), "s.yaml")
	if err := os.WriteFile(file, []byte("kind: KubeSchedulerConfiguration\nclientConnection: {qps: 7, kubeconfig: /wrong}\nparallelism: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Arguments.Scheduler = []string{"config=" + file}
	if err := o.writeSchedulerConfig(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(o.runtime(schedulerConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	want := "clientConnection:\n  kubeconfig: " + o.RunDir + "/scheduler.kubeconfig\n  qps: 7\nkind: KubeSchedulerConfiguration\nparallelism: 3\n"
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	if err := os.WriteFile(file, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.writeSchedulerConfig(); err == nil {
		t.Error("took a list for a configuration")
	}
}

// TestComponentsTakeArguments lets upstream's own parsers judge. It runs once in a process: the options are global.
func TestComponentsTakeArguments(t *testing.T) {
	s, err := newComponents(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if s.apiserver.SecureServing.BindPort != 6443 || s.manager.SecureServing.BindPort != 0 || s.scheduler.SecureServing.BindPort != 0 {
		t.Error("ports: want the apiserver's alone")
	}
	if s.manager.Generic.LeaderElection.LeaderElect || s.scheduler.LeaderElection.LeaderElect {
		t.Error("leader election is on; a lost lease would end the process")
	}
	plugins := s.apiserver.Admission.GenericAdmission
	if d := cmp.Diff([]string{"NodeRestriction"}, plugins.EnablePlugins); d != "" || len(plugins.DisablePlugins) > 0 || plugins.ConfigFile != "" {
		t.Errorf("admission differs from upstream's by more than NodeRestriction: %s, off %v, configured by %q", d, plugins.DisablePlugins, plugins.ConfigFile)
	}
	for _, name := range []string{"PodSecurity", "ValidatingAdmissionWebhook", "MutatingAdmissionWebhook", "ValidatingAdmissionPolicy", "ResourceQuota", "ServiceAccount", "LimitRanger"} {
		if plugins.DefaultOffPlugins.Has(name) {
			t.Errorf("%s is off; a conformant cluster has it", name)
		}
	}
	if s.apiserver.Features.EnableProfiling {
		t.Error("profiling is on")
	}
}

func TestAwait(t *testing.T) {
	boom := errors.New("boom")
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	one := func(v ended) chan ended { c := make(chan ended, 1); c <- v; return c }
	for _, tt := range []struct {
		name string
		ctx  context.Context
		ends chan ended
		want string
	}{
		{"failure", t.Context(), one(ended{"kube-scheduler", boom}), "kube-scheduler ended: boom"},
		{"silent end", t.Context(), one(ended{"kube-apiserver", nil}), "kube-apiserver ended: returned without being asked to"},
		{"end while stopping", stopped, one(ended{"kube-scheduler", boom}), ""},
		{"asked to stop", stopped, nil, ""},
	} {
		got := ""
		if err := await(tt.ctx, nil, tt.ends); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: await = %q; want %q", tt.name, got, tt.want)
		}
	}
}

// TestStopOutlivesContext checks that a component goes on after the process was asked to stop, until its own turn.
func TestStopOutlivesContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ends := make(chan ended, 1)
	r := start(ctx, component{"x", func(ctx context.Context) error { <-ctx.Done(); return nil }}, ends)
	cancel()
	select {
	case e := <-ends:
		t.Fatalf("component ended with the context: %+v", e)
	case <-time.After(20 * time.Millisecond):
	}
	stop(slog.New(slog.DiscardHandler), time.Second, r)
	if e := <-ends; e.err != nil {
		t.Error(e.err)
	}
}
