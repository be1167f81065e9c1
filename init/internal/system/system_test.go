package system

import (
	"flag"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/sequence"
	"github.com/cairn-os/cairn/pkg/uevent"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// TestPhases holds the boot's order and what a failure of each step means, on a machine and in a container.
func TestPhases(t *testing.T) {
	var b strings.Builder
	for _, container := range []bool{false, true} {
		m := &machine{opt: Options{Container: container}}
		for _, list := range [][]sequence.Phase{m.bootPhases(), m.shutdownPhases(power.Reboot)} {
			for _, p := range list {
				if p.Timeout == 0 {
					t.Errorf("phase %s may hang for ever", p.Name)
				}
				b.WriteString(p.Name + " " + p.Policy.String())
				if p.RunWhen != nil && !p.RunWhen() {
					b.WriteString(" skipped")
				}
				b.WriteString("\n")
			}
			b.WriteString("--\n")
		}
	}
	golden(t, "phases", b.String())
}

func TestMounts(t *testing.T) {
	var b strings.Builder
	for _, m := range append(pseudoFileSystems(), persistent()...) {
		b.WriteString(m.String() + "\n")
	}
	golden(t, "mounts", b.String())
}

func TestServices(t *testing.T) {
	for _, role := range []string{config.RoleServer, config.RoleAgent, config.RoleWitness} {
		for _, total := range []int64{512 * mib, 2048 * mib, 64 << 30} {
			checkServices(t, role, total)
		}
	}
	if n := len(services(1<<30, false, config.Own, config.RoleServer)); n != 6 {
		t.Errorf("without keys %d services; want 6, and no sshd", n)
	}
}

func checkServices(t *testing.T, role string, total int64) {
	t.Helper()
	var sum int64
	ready := map[string]bool{}
	for _, s := range services(total, true, config.Own, role) {
		for _, dep := range s.After {
			if !ready[dep] {
				t.Errorf("%s: %s comes before %s, which it needs", role, s.Name, dep)
			}
		}
		ready[s.Name] = true
		if !s.Oneshot { // whose memory is free again when the others start
			sum += s.MemoryLimit
		}
		if s.OOMScore >= 0 {
			t.Errorf("%s: %s would be killed before a pod", role, s.Name)
		}
		if s.Name != "sshd" && !s.Notify {
			t.Errorf("%s: %s does not tell when it serves", role, s.Name)
		}
	}
	if sum > total*4/5 {
		t.Errorf("%s: limits of %d MiB in %d MiB leave no room for pods", role, sum/mib, total/mib)
	}
}

// TestServiceTable holds who runs what, after what, and how long each may take: on each role, and beside each datastore.
func TestServiceTable(t *testing.T) {
	var b strings.Builder
	table := func(name string, datastore config.DatastoreKind, role string) {
		b.WriteString(name + "\n")
		for _, s := range services(1<<30, false, datastore, role) {
			b.WriteString("  " + s.Name)
			if s.Oneshot {
				b.WriteString(" oneshot")
			}
			if s.ReadyTimeout != 0 {
				b.WriteString(" within " + s.ReadyTimeout.String())
			}
			if len(s.After) > 0 {
				b.WriteString(" after " + strings.Join(s.After, " "))
			}
			b.WriteString("\n")
		}
	}
	table("server", config.Own, config.RoleServer)
	table("agent", config.Own, config.RoleAgent)
	table("witness", config.Own, config.RoleWitness)
	table("server with an SQL database", config.SQL, config.RoleServer)
	table("server with an etcd cluster", config.Etcd, config.RoleServer)
	golden(t, "services", b.String())
}

func TestSignalAction(t *testing.T) {
	tests := []struct {
		sig       os.Signal
		container bool
		want      power.Action
	}{
		{unix.SIGINT, false, power.Reboot}, {unix.SIGTERM, false, power.Reboot}, {unix.SIGTERM, true, power.PowerOff},
		{unix.SIGUSR2, false, power.PowerOff}, {unix.SIGPWR, false, power.PowerOff}, {unix.SIGHUP, false, power.None},
	}
	for _, tt := range tests {
		if got := signalAction(tt.sig, tt.container); got != tt.want {
			t.Errorf("signalAction(%v, %v) = %v; want %v", tt.sig, tt.container, got, tt.want)
		}
	}
}

func TestFsckVerdict(t *testing.T) {
	tests := map[reaper.Exit]verdict{
		{Code: 1}: fsckFixed, {Code: 2}: fsckFixed, {Code: 3}: fsckFixed, {Code: 4}: fsckUnfixed, {Code: 5}: fsckUnfixed,
		{Code: 8}: fsckFailed, {Code: 12}: fsckFailed, {Code: 16}: fsckFailed, {Code: 127}: fsckFailed, {Signal: syscall.SIGKILL}: fsckFailed,
	}
	for exit, want := range tests {
		if got := fsckVerdict(exit); got != want {
			t.Errorf("fsckVerdict(%v) = %v; want %v", exit, got, want)
		}
	}
}

func TestCorruption(t *testing.T) {
	e := uevent.Event{Action: "change", Env: map[string]string{"DM_VERITY_ERR_BLOCK_NR": "0,4711"}}
	if got := corruption(e); !strings.Contains(got, "refused block 4711;") {
		t.Errorf("corruption() = %q", got)
	}
	e.Env["DM_VERITY_ERR_BLOCK_NR"] = "1,5"
	if got := corruption(e); !strings.Contains(got, "refused hash block 5;") {
		t.Errorf("corruption() = %q", got)
	}
	if got := corruption(uevent.Event{}); got != "" {
		t.Errorf("corruption() of another event = %q; want nothing", got)
	}
}
