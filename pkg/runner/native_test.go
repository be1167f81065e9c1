package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/nodens"
	"github.com/cairn-os/cairn/pkg/status"
)

// startNative starts a machine that lives as long as the test. Its console is
// shown when the test fails.
func startNative(t *testing.T, o NativeOptions) *Native {
	t.Helper()
	if err := nodens.Available(); err != nil {
		t.Skip(err)
	}
	o.Name = "native-1"
	o.Address = netip.MustParsePrefix("10.88.0.7/24")
	m, err := StartNative(t.Context(), builtImage(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the console's end:\n%s", m.Console().Tail(60))
		}
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// machineStatus asks the machine itself.
func machineStatus(ctx context.Context, m Machine) (status.Status, error) {
	var st status.Status
	text, err := m.Run(ctx, "cairnctl status --output json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(text), &st)
}

func process(st status.Status, name string) (status.Process, error) {
	for _, p := range st.Processes {
		if p.Name == name {
			return p, nil
		}
	}
	return status.Process{}, fmt.Errorf("no process %s in the status", name)
}

// TestNativeMachine boots a machine to a served page, kills each of its
// processes, cuts its power and reboots it.
func TestNativeMachine(t *testing.T) {
	lane.Require(t, "native")
	outer, dir := t, t.TempDir()
	state := filepath.Join(dir, "state")
	m := startNative(t, NativeOptions{State: state})
	check(within(t, 3*time.Minute), t, m, builtImage(t), dir)
	cluster, err := Connect(filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("secrets are encrypted at rest", func(t *testing.T) { testSecretAtRest(t, m, cluster, state) })
	t.Run("restore", func(t *testing.T) { testRestore(t, m, cluster) })
	t.Run("kill -9", func(t *testing.T) {
		for _, name := range []string{"store", "control", "containerd", "node", "cairnd"} {
			t.Run(name, func(t *testing.T) { testKill(t, m, cluster, name) })
		}
	})
	t.Run("power cut", func(t *testing.T) {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		again := startNative(outer, NativeOptions{State: state})
		check(within(t, 3*time.Minute), t, again, builtImage(t), dir)
		m = again
	})
	if t.Failed() {
		return
	}
	t.Run("reboot", func(t *testing.T) {
		if _, err := m.Run(within(t, time.Minute), "reboot"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Console().Wait(within(t, time.Minute), regexp.MustCompile(`^native-1 ended: code 3 <nil>`), 0); err != nil {
			t.Fatal(err)
		}
		if m = startNative(outer, NativeOptions{State: state}); t.Failed() {
			return
		}
		check(within(t, 3*time.Minute), t, m, builtImage(t), dir)
	})
	t.Run("power off", func(t *testing.T) {
		if err := m.Stop(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if l, ok := m.Console().Find(outlived); ok {
			t.Errorf("a process outlived its grace period: %s", l.Text)
		}
	})
}

// outlived is what init says of a process that it has to kill at the end.
var outlived = regexp.MustCompile(`killing .*did not end within`)

// testSecretAtRest looks for a secret's value in the store's files.
func testSecretAtRest(t *testing.T, m Machine, c *Cluster, state string) {
	ctx := within(t, time.Minute)
	const value = "correct-horse-battery-staple"
	if _, err := m.Run(ctx, "kubectl create secret generic plain --from-literal=key="+value); err != nil {
		t.Fatal(err)
	}
	secret, err := c.CoreV1().Secrets(namespace).Get(ctx, "plain", metav1.GetOptions{})
	if err != nil || string(secret.Data["key"]) != value {
		t.Fatalf("the secret reads as %q, %v; want %q", secret.Data["key"], err, value)
	}
	files, err := filepath.Glob(filepath.Join(state, "var/lib/cairn/store/member/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the store's files: %v, %v", files, err)
	}
	named := false
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), value) {
			t.Errorf("%s holds the secret in plain text", file)
		}
		named = named || strings.Contains(string(data), "/registry/secrets/default/plain")
	}
	if !named {
		t.Error("the store's files do not name the secret: this test reads the wrong files")
	}
}

// testKill kills the process name and asserts that it comes back, that all
// others live on and that the pod's container was not touched.
func testKill(t *testing.T, m Machine, c *Cluster, name string) {
	ctx := within(t, 2*time.Minute)
	before, err := machineStatus(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	victim, err := process(before, name)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := c.WaitPod(ctx, helloName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(ctx, fmt.Sprintf("kill -9 %d", victim.PID)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	var after status.Status
	err = poll(ctx, name+" is ready again", func(ctx context.Context) (bool, error) {
		var err error
		if after, err = machineStatus(ctx, m); err != nil {
			return false, err
		}
		p, err := process(after, name)
		if err != nil {
			return false, err
		}
		if p.Restarts <= victim.Restarts || p.ReadyS == 0 {
			return false, fmt.Errorf("%s, %d restarts, %s", p.State, p.Restarts, p.LastExit)
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s ready again after %s", name, time.Since(start).Round(10*time.Millisecond))
	for _, p := range before.Processes {
		now, err := process(after, p.Name)
		if err != nil || p.Name != name && now.PID != p.PID {
			t.Errorf("%s had pid %d and has %d, %v: killing %s must not touch it", p.Name, p.PID, now.PID, err, name)
		}
	}
	if err := c.WaitNodeReady(ctx, m.Name()); err != nil {
		t.Error(err)
	}
	if err := FetchPage(ctx, m.Page()); err != nil {
		t.Error(err)
	}
	now, err := c.WaitPod(ctx, helloName)
	if err != nil {
		t.Fatal(err)
	}
	if now.UID != pod.UID || now.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("the pod's container was %s and is %s: killing %s must not touch it",
			pod.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID, name)
	}
}

// TestNativeBadConfig boots with documents that no machine may half apply.
func TestNativeBadConfig(t *testing.T) {
	lane.Require(t, "native")
	for _, tt := range []struct{ name, document, want string }{
		{"unknown key", "hostname: a\nhostnmae: b\n", `config\.d/bad\.yaml:2: hostnmae`},
		{"wrong type", "run_cmd: {a: b}\n", `config\.d/bad\.yaml:1: run_cmd`},
		{"duplicate key", "hostname: a\nhostname: b\n", `config\.d/bad\.yaml:2: hostname`},
		{"second document", "hostname: a\n---\nhostname: b\n", `config\.d/bad\.yaml:[23]: `},
		{"binary", "\x00\x01\xff\xfe junk", `config\.d/bad\.yaml:1: `},
		{"nesting", strings.Repeat("[", 1<<20), `config\.d/bad\.yaml:1: `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state := t.TempDir()
			bad := filepath.Join(state, "var/lib/cairn/config.d/bad.yaml")
			if err := os.MkdirAll(filepath.Dir(bad), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(bad, []byte(tt.document), 0o600); err != nil {
				t.Fatal(err)
			}
			m := startNative(t, NativeOptions{State: state})
			if _, _, err := m.Console().Wait(within(t, time.Minute), regexp.MustCompile(tt.want), 0); err != nil {
				t.Fatal(err)
			}
			if l, ok := m.Console().Find(regexp.MustCompile(`phase \d+/\d+ (network|services)`)); ok {
				t.Errorf("the boot went on after a bad document: %s", l.Text)
			}
			for _, pattern := range []string{"store/*", "server/tls/*", "config/last-good.yaml"} {
				left, err := filepath.Glob(filepath.Join(state, "var/lib/cairn", pattern))
				if err != nil || len(left) > 0 {
					t.Errorf("a boot with a bad document left %v, %v", left, err)
				}
			}
		})
	}
}
