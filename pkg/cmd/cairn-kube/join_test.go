package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/status"
)

func TestMachineClock(t *testing.T) {
	failed := errors.New("no")
	for _, tt := range []struct {
		name    string
		clock   *status.Clock
		asked   error
		kernel  int32
		refused error
		want    bool
		err     error
	}{
		{name: "no time server has answered", clock: &status.Clock{Error: "timeout"}, kernel: unix.STA_UNSYNC, want: true},
		{name: "set by a time server", clock: &status.Clock{Synchronized: true}, kernel: unix.STA_UNSYNC},
		{name: "set by another program", clock: &status.Clock{}, kernel: unix.STA_PLL},
		{name: "the host's", kernel: unix.STA_UNSYNC},
		{name: "cairnd is not up", asked: failed, kernel: unix.STA_UNSYNC, err: failed},
		{name: "the kernel does not say", clock: &status.Clock{}, refused: failed, err: failed},
	} {
		c := machineClock{
			keeper: func(context.Context) (status.Status, error) { return status.Status{Clock: tt.clock}, tt.asked },
			adjust: func(tx *unix.Timex) (int, error) {
				if tx.Modes != 0 {
					t.Errorf("%s: adjtimex with modes %#x; want the clock only asked", tt.name, tx.Modes)
				}
				tx.Status = tt.kernel
				return 0, tt.refused
			},
		}
		if got, err := c.Unset(t.Context()); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: Unset = %t, %v; want %t, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
	at := time.Date(2027, 3, 1, 12, 0, 0, 250_000_000, time.UTC)
	var set unix.Timeval
	c := machineClock{set: func(tv *unix.Timeval) error { set = *tv; return nil }}
	if err := c.Set(at); err != nil || set != unix.NsecToTimeval(at.UnixNano()) {
		t.Errorf("Set(%v) = %v, set %v", at, err, set)
	}
	c.set = func(*unix.Timeval) error { return unix.EPERM }
	if err := c.Set(at); !errors.Is(err, unix.EPERM) {
		t.Errorf("Set without the right to = %v", err)
	}
}

func TestWantedDatastore(t *testing.T) {
	for endpoint, want := range map[string]membership.Datastore{
		"":                              membership.OwnStore,
		"https://a:2379,https://b:2379": membership.Etcd,
		"http://a:2379":                 membership.Etcd,
		"postgres://u:p@db/shop":        membership.Postgres,
		"postgresql://u:p@db/shop":      membership.Postgres,
		"mysql://u:p@tcp(db:3306)/shop": membership.MySQL,
	} {
		cfg := &config.Config{}
		cfg.Cairn.Datastore.Endpoint = endpoint
		s := wantedSettings(cfg, membership.Server)
		if s == nil || s.Datastore != want {
			t.Errorf("settings of a server with the datastore %q = %v; want %q", endpoint, s, want)
		}
		if s := wantedSettings(cfg, membership.Agent); s != nil {
			t.Errorf("settings of an agent = %v; want none", s)
		}
	}
}
