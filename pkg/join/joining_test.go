package join

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

// TestCutThenNoServer cuts the power at each write of a join, and the operator then takes cairn.server_url out of the
// configuration. The machine begins a cluster only while it has no file of the other one; it goes on when it is given the
// server again.
func TestCutThenNoServer(t *testing.T) {
	c := newCluster(t)
	machines := byte(0)
	for _, role := range []membership.Role{membership.Server, membership.Agent, membership.Witness} {
		for _, late := range []bool{false, true} {
			begun, refused := 0, 0
			for n := 0; ; n++ {
				name := fmt.Sprintf("cut-%s-%t-%d", role, late, n)
				o, status := c.machine(role, name, c.token(token.Server))
				machines++
				o.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, machines})}
				o.write = cutAt(n, late)
				if role == membership.Agent {
					o.ObtainNode = c.obtain(&o)
				}
				err := run(t, o)
				if err == nil {
					checkNotJoining(t, o)
					break
				}
				if !errors.Is(err, errCut) {
					t.Fatalf("%s: %v", name, err)
				}
				o.write = nil
				had := files(t, o.Dir)
				alone := o
				alone.ServerURL, alone.Token, alone.Role = "", "", membership.Server // which is what its configuration says now
				err = run(t, alone)
				m, _ := membership.Load(o.membershipFile())
				switch {
				case err == nil && m.Founded:
					begun++
					for _, f := range had {
						if f != "node/identity.pem" {
							t.Errorf("%s: it began a cluster with %s", name, f)
						}
					}
				case err == nil: // it had been told all
					checkNotJoining(t, o)
				case !IsRefusal(err) || !strings.Contains(*status, o.ServerURL) || !strings.Contains(*status, "cairn.server_url") || !strings.Contains(*status, "cairnctl reset"):
					t.Errorf("%s: %v, status %q; want to be told what to do", name, err, *status)
				default:
					refused++
					if got := files(t, o.Dir); !slices.Equal(got, had) {
						t.Errorf("%s: files %v; want those of before, %v", name, got, had)
					}
					if m := mustRun(t, o); m.Founded || m.Role != role || lackingAny(t, o) {
						t.Errorf("%s: with the server again: %+v", name, m)
					}
					checkNotJoining(t, o)
				}
			}
			if begun < 1 || refused < 4 {
				t.Errorf("%s: %d clusters begun, %d refused; want both", role, begun, refused)
			}
		}
	}
}

func checkNotJoining(t *testing.T, o Options) {
	t.Helper()
	if _, err := os.Stat(o.joiningFile()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a member is still joining: %v", err)
	}
}

// TestVainTry lets a machine begin a cluster that never got an answer from another.
func TestVainTry(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Server, "alone", otherPin(t, c.token(token.Server)))
	wantRefusal(t, o, run(t, o), CodeCA)
	o.ServerURL = ""
	if m := mustRun(t, o); !m.Founded {
		t.Errorf("membership %+v", m)
	}
}

// TestJoiningWithoutIdentity takes a machine that joins for no first server of an earlier release, whatever it lost.
func TestJoiningWithoutIdentity(t *testing.T) {
	c := newCluster(t)
	for n := 3; n < 7; n++ { // some authorities are there, the store's is not
		o, status := c.machine(membership.Server, fmt.Sprint("lost-", n), c.token(token.Server))
		o.Addresses = nil
		o.write = cutAt(n, false)
		if err := run(t, o); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		o.write = nil
		if err := os.Remove(IdentityFile(o.Dir)); err != nil {
			t.Fatal(err)
		}
		alone := o
		alone.ServerURL = ""
		wantRefusal(t, alone, run(t, alone), CodeConfig, "cairn.server_url")
		if err := os.WriteFile(o.joiningFile(), nil, 0o600); err != nil { // what it holds does not matter
			t.Fatal(err)
		}
		wantRefusal(t, alone, run(t, alone), CodeConfig, "another server")
		if err := Forget(t.Context(), c.client, o.Node); err != nil {
			t.Fatal(err)
		}
		if m := mustRun(t, o); m.Founded {
			t.Errorf("membership %+v, status %q", m, *status)
		}
	}
}
