package balancer

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHealth(t *testing.T) {
	// r: ready, u: unready, l: slow, s: silent, x: connection refused
	for events, want := range map[string]State{
		"":       Unknown,
		"r":      Ready,
		"u":      NotReady,
		"s":      Dead,
		"x":      Dead,
		"ru":     Ready,
		"ruu":    NotReady,
		"rs":     Ready,
		"rss":    Dead,
		"rsr":    Ready,
		"rsrs":   Ready,
		"rsu":    NotReady,
		"rus":    Ready,
		"russ":   Dead,
		"rx":     Dead,
		"rxu":    NotReady,
		"rxr":    Ready,
		"ruus":   NotReady,
		"ruuss":  Dead,
		"ruusu":  NotReady,
		"ruusus": NotReady,
		"rxs":    Dead,
		"l":      NotReady,
		"rl":     NotReady,
		"rll":    NotReady,
		"rlr":    Ready,
		"rls":    NotReady,
		"rlss":   Dead,
		"rsls":   NotReady,
		"rlx":    Dead,
		"rxl":    NotReady,
	} {
		h := health{state: Unknown}
		now := time.Unix(1000, 0)
		for _, e := range events {
			now = now.Add(time.Second)
			switch e {
			case 'r':
				h.ready(now)
			case 'u':
				h.unready(now, now, errNotReady)
			case 'l':
				h.slow(now, now, errSlow)
			case 's':
				h.silent(now, now, errors.New("timeout"))
			case 'x':
				h.refused(now, now, errors.New("refused"))
			}
		}
		if h.state != want {
			t.Errorf("after %q: %s; want %s", events, h.state, want)
		}
		if ready := h.reason == ""; ready != (events == "" || strings.HasSuffix(events, "r")) {
			t.Errorf("after %q: reason %q", events, h.reason)
		}
	}
}

// TestSpread wants nodes to use all servers about evenly, and when one fails,
// its nodes to use all of the others.
func TestSpread(t *testing.T) {
	servers := []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}
	first, second := map[string]int{}, map[string]int{}
	const nodes = 300
	for i := range nodes {
		p := &pool{seed: fmt.Sprintf("node-%d", i), log: slog.New(slog.DiscardHandler), now: time.Now, servers: map[string]*server{}, changed: make(chan struct{}, 1)}
		p.set(servers)
		order := p.order()
		first[order[0].address]++
		p.refused(order[0], p.now(), errors.New("power cut"))
		if order[0].address == servers[0] {
			second[p.order()[0].address]++
		}
	}
	t.Logf("first choice %v; of those of %s when it fails %v", first, servers[0], second)
	for _, s := range servers {
		if first[s] < nodes/4 {
			t.Errorf("%d of %d nodes use %s", first[s], nodes, s)
		}
	}
	for _, s := range servers[1:] {
		if second[s] < first[servers[0]]/3 {
			t.Errorf("of %d nodes whose server fails, %d go to %s", first[servers[0]], second[s], s)
		}
	}
}

// unstarted makes a balancer that does not run.
func unstarted(t *testing.T, o Options) (*Balancer, *journal, error) {
	t.Helper()
	j := &journal{}
	o.Log = j.logger()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	b, err := newBalancer(o, quick())
	if err == nil {
		t.Cleanup(func() { b.closeListeners() })
	}
	return b, j, err
}

func addresses(b *Balancer) []string {
	var all []string
	for _, s := range b.Servers() {
		all = append(all, s.Address)
	}
	return all
}

func TestKeepsList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers.json")
	b, _, err := unstarted(t, Options{File: file, Initial: []string{"10.0.0.1:6443"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.0.0.1:6443"}, addresses(b)); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	if err := b.Set([]string{"10.0.0.3:6443", "[fd00::2]:6443", "10.0.0.3:6443", "10.0.0.1:6443"}); err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.1:6443", "10.0.0.3:6443", "[fd00::2]:6443"}
	if diff := cmp.Diff(want, addresses(b)); diff != "" {
		t.Errorf("after Set (-want +got):\n%s", diff)
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if before.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", before.Mode())
	}

	// The same servers again are not written again: not by this balancer, and
	// not by the next.
	if err := b.Set([]string{want[2], want[1], want[0]}); err != nil {
		t.Fatal(err)
	}
	next, j, err := unstarted(t, Options{File: file, Initial: []string{"10.9.9.9:6443"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, addresses(next)); diff != "" {
		t.Errorf("at the next start (-want +got):\n%s", diff)
	}
	if err := next.Set(want); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the same list was written again")
	}
	if j.String() != "" {
		t.Errorf("log %q", j)
	}
}

func TestUnreadableList(t *testing.T) {
	for name, data := range map[string]string{
		"empty":      "",
		"cut short":  `{"servers":["10.0.0.1:64`,
		"no server":  `{"servers":[]}`,
		"no address": `{"servers":["10.0.0.1"]}`,
		"zeros":      "\x00\x00\x00\x00",
	} {
		file := filepath.Join(t.TempDir(), "servers.json")
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		b, j, err := unstarted(t, Options{File: file, Initial: []string{"10.0.0.1:6443"}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := addresses(b); !cmp.Equal(got, []string{"10.0.0.1:6443"}) {
			t.Errorf("%s: servers %v", name, got)
		}
		aside, err := os.ReadFile(file + asideSuffix)
		if err != nil || string(aside) != data {
			t.Errorf("%s: set aside %q, %v", name, aside, err)
		}
		if !strings.Contains(j.String(), "starting with the servers that the node joined by") {
			t.Errorf("%s: log %q", name, j)
		}
		if err := b.Set([]string{"10.0.0.1:6443"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: after Set: %v", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	good := []string{"10.0.0.1:6443"}
	for name, o := range map[string]Options{
		"in use":           {Listen: taken.Addr().String(), Initial: good},
		"want a loopback":  {Listen: "0.0.0.0:0", Initial: good},
		"no server":        {},
		"want host:port":   {Initial: []string{"10.0.0.1:0"}},
		"preferred server": {Initial: good, Prefer: "10.0.0.1"},
	} {
		o.File = filepath.Join(dir, "servers.json")
		if _, _, err := unstarted(t, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New = %v; want %q", err, name)
		}
	}
}

// TestRest asks a server that is not ready often only while there is no other: a node waits for it then. The one in use is
// asked more often than others that are ready, when there is one to go to.
func TestRest(t *testing.T) {
	now, why := time.Unix(1e9, 0), errors.New("status 500")
	first, second, own := &server{address: "10.0.0.1:6443"}, &server{address: "10.0.0.2:6443"}, &server{address: "10.0.0.3:6443"}
	p := &pool{servers: map[string]*server{first.address: first, second.address: second}}
	d := defaultTiming()
	for _, tt := range []struct {
		name   string
		change func()
		want   time.Duration // of first
	}{
		{"nobody was asked yet", func() {}, d.soon},
		{"none is ready", func() {
			first.health.unready(now, now, why)
			first.health.unready(now, now, why)
			second.health.silent(now, now, why)
		}, d.soon},
		{"another is ready", func() { second.health.ready(now) }, d.interval},
		{"both are", func() { first.health.ready(now) }, d.spare},
		{"it is the current one", func() { p.current = first }, d.brisk},
		{"another is, and it has connections", func() {
			p.current = second
			first.sessions = map[*session]struct{}{{}: {}}
		}, d.brisk},
		{"it is on this machine", func() { p.prefer = first.address }, d.interval},
		{"it is in doubt", func() { first.health.unready(now, now, why) }, d.soon},
		{"its handshake took too long", func() { first.health.ready(now); first.health.slow(now, now, why) }, d.soon},
		{"and again", func() { first.health.slow(now, now, why) }, d.interval},
		{"it is the only one, and in use", func() {
			p.prefer = own.address
			first.health.ready(now)
			second.health.refused(now, now, why)
		}, d.interval},
	} {
		tt.change()
		if got := p.rest(first, d); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
}

// TestRefuge is about when connections to a server that seems lost are cut.
func TestRefuge(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(1e9, 0).Add(time.Duration(seconds) * time.Second) }
	why := errors.New("why")
	for _, tt := range []struct {
		name                 string
		since, proved, heard int // of the other server, which is ready
		event                func(h *health, began, now time.Time, why error)
		failed               int // when the last check of the lost one began, missed since second 100
		want, asked          bool
	}{
		{"it answered since", 1, 95, 101, (*health).vanished, 102, true, false},
		{"it answered before: it may be this machine's cable", 1, 95, 95, (*health).vanished, 102, false, true},
		{"it is back after a cable was: the other may be as well", 110, 109, 110, (*health).vanished, 105, false, false},
		{"it is back, and the other is not", 110, 109, 110, (*health).vanished, 113, true, false},
		{"only its kernel answered, beside one that lives", 1, 95, 101, (*health).slow, 102, false, true},
		{"a whole check went well that began before", 1, 99, 103, (*health).slow, 102, false, true},
		{"a whole check went well", 1, 101, 101, (*health).slow, 102, true, false},
		{"this machine was too busy, and is no more", 110, 109, 109, (*health).slow, 108, false, false},
		{"only its kernel answered, beside one that refuses", 1, 95, 101, (*health).refused, 102, false, true},
		{"it serves beside one that refuses", 1, 101, 101, (*health).refused, 102, true, false},
	} {
		lost := &server{address: "lost", kick: make(chan struct{}, 1)}
		other := &server{address: "other", kick: make(chan struct{}, 1), heard: at(tt.heard), proved: at(tt.proved)}
		p := &pool{servers: map[string]*server{lost.address: lost, other.address: other}}
		lost.health.ready(at(0))
		tt.event(&lost.health, at(100), at(102), why)
		tt.event(&lost.health, at(tt.failed), at(tt.failed+2), why)
		other.health.ready(at(tt.since))
		if got := p.refuge(lost); got != tt.want || len(other.kick) > 0 != tt.asked {
			t.Errorf("%s: refuge = %t, the other is asked %t; want %t, %t", tt.name, got, len(other.kick) > 0, tt.want, tt.asked)
		}
	}
}

// TestUnseen is about a process that did not run while time went by.
func TestUnseen(t *testing.T) {
	d := defaultTiming()
	begin := time.Now()
	for _, tt := range []struct {
		name       string
		last, over time.Duration // since begin
		want       bool
	}{
		{"as it is to be", 1050 * time.Millisecond, 2 * time.Second, false},
		{"a busy moment", 1200 * time.Millisecond, 2200 * time.Millisecond, false},
		{"it stood still in the middle", 1900 * time.Millisecond, 2 * time.Second, true},
		{"it stood still to the end", 1050 * time.Millisecond, 3 * time.Second, true},
	} {
		if got := d.unseen(begin, begin.Add(tt.last), begin.Add(tt.over)); got != tt.want {
			t.Errorf("%s: unseen = %t; want %t", tt.name, got, tt.want)
		}
	}
}
