package adminapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// machine is what the interface talks to: it notes what it was told, and an upgrade lasts until it may end.
type machine struct {
	mu   sync.Mutex
	told []string
	goOn chan struct{}
	err  error
}

func (m *machine) tell(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, fmt.Sprintf(format, args...))
}

func (m *machine) Status() (upgrade.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := upgrade.Status{Running: release.Info{Version: "1.0.0"}, Slot: slot.A, Held: []history.Quarantine{}}
	return s, nil
}

func (m *machine) Plan(_ context.Context, q upgrade.Request) (update.Plan, error) {
	m.tell("plan %+v", q)
	return update.Plan{To: release.Info{Version: q.Version}, Images: []update.ImagePlan{{Name: "root", Size: 9}}}, m.err
}

func (m *machine) Upgrade(ctx context.Context, q upgrade.Request, tell func(update.Progress)) (update.Plan, error) {
	m.tell("upgrade %+v", q)
	tell(update.Progress{Step: "write root", Done: 1, Total: 2})
	select {
	case <-m.goOn:
	case <-ctx.Done():
		m.tell("upgrade was ended")
		return update.Plan{}, ctx.Err()
	}
	m.tell("upgrade is done")
	return update.Plan{To: release.Info{Version: q.Version}}, m.err
}

func (m *machine) RollBack(_ context.Context, text string) (bool, error) {
	m.tell("roll back: %s", text)
	return true, m.err
}

func (m *machine) Attempts() ([]history.Attempt, error) {
	return []history.Attempt{{ID: "000001-1.1.0", Verdict: history.RolledBack, Reason: history.Panic}}, m.err
}

func (m *machine) Clear(version string) error {
	m.tell("clear %s", version)
	return m.err
}

func serve(t *testing.T) (*machine, *Client) {
	t.Helper()
	m := &machine{goOn: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "cairnd.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := &Server{Status: func(context.Context) (status.Status, error) { return status.Status{}, nil }, Upgrades: m, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m, NewClient(path)
}

func TestUpgradeIsFollowed(t *testing.T) {
	m, c := serve(t)
	var steps []string
	plan, err := c.Upgrade(t.Context(), upgrade.Request{Version: "1.1.0", NoReboot: true}, func(p update.Progress) {
		if steps = append(steps, p.String()); len(steps) == 1 {
			close(m.goOn)
		}
	})
	if err != nil || plan.To.Version != "1.1.0" {
		t.Errorf("Upgrade = %+v, %v; want the plan to 1.1.0", plan, err)
	}
	if len(steps) == 0 || !strings.HasPrefix(steps[0], "write root: 50 %") {
		t.Errorf("steps %q; want write root at 50 %%", steps)
	}
	want := []string{"upgrade {Version:1.1.0 Source: NoReboot:true}", "upgrade is done"}
	if diff := cmp.Diff(want, m.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// TestUpgradeOutlivesItsClient: an operator's ssh that breaks off must not end an upgrade.
func TestUpgradeOutlivesItsClient(t *testing.T) {
	m, c := serve(t)
	ctx, leave := context.WithCancel(t.Context())
	if _, err := c.Upgrade(ctx, upgrade.Request{}, func(update.Progress) { leave() }); err == nil {
		t.Error("a client that left got a plan")
	}
	close(m.goOn)
	for deadline := time.Now().Add(10 * time.Second); ; {
		m.mu.Lock()
		last := m.told[len(m.told)-1]
		m.mu.Unlock()
		if last == "upgrade is done" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after its client left: %s", last)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestRequests(t *testing.T) {
	m, c := serve(t)
	plan, err := c.PlanUpgrade(t.Context(), upgrade.Request{Version: "1.2.0", Source: "file:///mnt"})
	if err != nil || plan.To.Version != "1.2.0" || len(plan.Images) != 1 {
		t.Errorf("PlanUpgrade = %+v, %v", plan, err)
	}
	if restart, err := c.RollBack(t.Context(), "the till"); err != nil || !restart {
		t.Errorf("RollBack = %v, %v", restart, err)
	}
	if err := c.ClearQuarantine(t.Context(), "1.1.0-rc.1"); err != nil {
		t.Error(err)
	}
	all, err := c.Attempts(t.Context())
	if err != nil || len(all) != 1 || all[0].Reason != history.Panic {
		t.Errorf("Attempts = %+v, %v", all, err)
	}
	if st, err := c.UpgradeStatus(t.Context()); err != nil || st.Running.Version != "1.0.0" || st.Slot != slot.A {
		t.Errorf("UpgradeStatus = %+v, %v", st, err)
	}
	want := []string{"plan {Version:1.2.0 Source:file:///mnt NoReboot:false}", "roll back: the till", "clear 1.1.0-rc.1"}
	if diff := cmp.Diff(want, m.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	m, c := serve(t)
	for _, tt := range []struct {
		err  error
		code int
	}{
		{fmt.Errorf("x: %w", update.ErrRefused), 409}, {upgrade.ErrBusy, 409}, {history.ErrNotQuarantined, 404}, {errors.New("disk"), 500},
	} {
		m.err = tt.err
		err := c.ClearQuarantine(t.Context(), "1.1.0")
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Code != tt.code || remote.Text != tt.err.Error() {
			t.Errorf("%v: %v; want code %d and its text", tt.err, err, tt.code)
		}
	}
	var remote *RemoteError
	if err := c.ask(t.Context(), "POST", "/v1/rollback", map[string]int{"what": 1}, nil); !errors.As(err, &remote) || remote.Code != 400 {
		t.Errorf("an unknown field: %v; want code 400", err)
	}
}
