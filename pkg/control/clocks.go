package control

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/nodeevent"
)

// maxSkew is by how much clocks may differ. Certificates begin 5 min before they are signed, and what they are checked
// for allows for no more; see nodecert.
const maxSkew = 10 * time.Minute

const (
	// apiserverLeases are the Leases in kube-system that each apiserver renews every 10 s, by its own clock.
	apiserverLeases = "apiserver.kubernetes.io/identity=kube-apiserver"
	// clockSay is after what time it is told again that the clock is wrong. Events last an hour.
	clockSay = 30 * time.Minute
	// clockLimit bounds one look at the others' clocks.
	clockLimit = 10 * time.Second
)

// clockTimes say how often clocks are compared, and what follows.
type clockTimes struct {
	soon     time.Duration // until the second look, and the next one while clocks differ: all renew their Leases meanwhile
	interval time.Duration // between looks otherwise
	stands   time.Duration // how long a clock must have been wrong before that is told and the lead is given away
	patience time.Duration // how long a server whose clock is wrong leaves a free lease to others
	again    time.Duration // after it led all the same, until it offers the lead again
}

func nodeClocks() clockTimes {
	return clockTimes{
		soon: 12 * time.Second, interval: 30 * time.Second, stands: 2 * time.Minute, patience: 30 * time.Second, again: 10 * time.Minute,
	}
}

// clocks compares this server's clock with those of the cluster's other machines. They write theirs into the Leases that
// they renew: every server's apiserver, and every node's kubelet, which is asked about when servers differ. A Lease
// counts when it changed between two looks, however old it says to be: by that its machine is known to live without a
// clock.
//
// After a power cut the clocks of boards without a battery are all wrong until a time server sets them, one after the
// other. So nothing is held against the own clock that was seen before it was set, a server whose clock was wrong in two
// looks leaves a free lease to others, and one that leads goes on until that has stood for long.
type clocks struct {
	node   string
	client kubernetes.Interface
	say    func(string) // the status line
	log    *slog.Logger
	now    func() time.Time
	times  clockTimes

	// All of these are run's alone.
	seen   map[string]time.Time // what the Lease of that namespace and name said last
	listed map[string]time.Time // when the Leases of that namespace were seen last
	wall   time.Time            // the own clock at the last look
	ran    time.Time            // when that was, by the clock that nobody sets
	looks  int                  // in which the own clock was wrong
	since  time.Time            // the first of these
	calm   int                  // looks in a row after these that found nothing wrong
	told   time.Time            // when the operator was told last
	shown  bool                 // the status line's text is of here

	mu      sync.Mutex
	doubted bool          // two looks found the own clock wrong
	wrong   string        // what is wrong with the own clock; "" as far as is known nothing, or not for long
	changed chan struct{} // closed when wrong changes
}

// otherClock is that of another machine.
type otherClock struct {
	machine string
	server  bool
	ahead   time.Duration // of the own clock
}

func newClocks(o Options, client kubernetes.Interface, log *slog.Logger) *clocks {
	return &clocks{
		node: o.Node, client: client, say: o.say, log: log, now: time.Now, times: nodeClocks(),
		seen: map[string]time.Time{}, listed: map[string]time.Time{}, changed: make(chan struct{}),
	}
}

// run compares until ctx ends.
func (c *clocks) run(ctx context.Context) {
	for rest := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		others, fresh, err := c.look(ctx)
		switch {
		case err != nil: // the cluster does not answer: what was known stays
			c.log.Debug("clocks not compared", "error", err)
			rest = c.times.interval
		case !fresh:
			c.forget()
			rest = c.times.soon
		default:
			v := compareClocks(others)
			c.conclude(ctx, v)
			if rest = c.times.interval; v.differ {
				rest = c.times.soon
			}
		}
	}
}

// look returns the clocks of the machines that live: of servers and, when those differ from the own clock, of all. It is
// not fresh, and there are none, when there was nothing to compare one of the lists with.
func (c *clocks) look(ctx context.Context) (others []otherClock, fresh bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	if c.jumped() {
		c.log.Info("the clock of this server was set")
		clear(c.listed)
	}
	servers, fresh, err := c.beats(ctx, metav1.NamespaceSystem, apiserverLeases)
	if err != nil || !fresh || !slices.ContainsFunc(servers, func(o otherClock) bool { return o.ahead.Abs() > maxSkew }) {
		return servers, fresh, err
	}
	nodes, fresh, err := c.beats(ctx, corev1.NamespaceNodeLease, "")
	if err != nil || !fresh {
		return nil, false, err
	}
	isServer := map[string]bool{}
	for _, s := range servers {
		isServer[s.machine] = true
	}
	return append(servers, slices.DeleteFunc(nodes, func(o otherClock) bool { return isServer[o.machine] })...), true, nil
}

// jumped reports whether the own clock was set since the last look. The Leases that were renewed before say nothing of
// what it shows now.
func (c *clocks) jumped() bool {
	wall, ran := c.now().Round(0), time.Now() // without and with the reading of the clock that nobody sets
	jumped := !c.ran.IsZero() && (wall.Sub(c.wall)-ran.Sub(c.ran)).Abs() > maxSkew
	c.wall, c.ran = wall, ran
	return jumped
}

// beats reads Leases and returns the clocks of other machines that renewed theirs since the last look. That must not be
// long ago: otherwise there are none, and they are not fresh.
func (c *clocks) beats(ctx context.Context, namespace, selector string) (all []otherClock, fresh bool, err error) {
	list, err := c.client.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: "0"})
	if err != nil {
		return nil, false, err
	}
	now := c.now()
	last, known := c.listed[namespace]
	c.listed[namespace] = time.Now()
	fresh = known && time.Since(last) <= 3*c.times.interval
	there := map[string]bool{}
	for _, l := range list.Items {
		if l.Spec.RenewTime == nil {
			continue
		}
		machine := l.Name
		if selector != "" { // a kubelet could write any name there
			machine = strings.ToLower(l.Labels[corev1.LabelHostname]) // as nodes are named
		}
		key := namespace + "/" + l.Name
		there[key] = true
		before, known := c.seen[key]
		c.seen[key] = l.Spec.RenewTime.Time
		if fresh && known && machine != c.node && !before.Equal(l.Spec.RenewTime.Time) {
			all = append(all, otherClock{machine: machine, server: selector != "", ahead: l.Spec.RenewTime.Sub(now).Round(time.Second)})
		}
	}
	maps.DeleteFunc(c.seen, func(key string, _ time.Time) bool { return strings.HasPrefix(key, namespace+"/") && !there[key] })
	return all, fresh, nil
}

// comparison is what the others' clocks say of the own one.
type comparison struct {
	differ bool          // from that of another server
	wrong  bool          // the own one is wrong
	off    time.Duration // by so much; positive: it is behind
	by     []string      // the machines that say so
}

// compareClocks takes the own clock for wrong when more than half of all machines, the own one included, agree with each
// other and not with it, and as many servers among them as agree with it, at least one: it could lead. So a server that is
// alone, or that has one other whose clock differs, goes on; and agents alone, which may be in bad hands, unseat nobody.
func compareClocks(others []otherClock) comparison {
	var v comparison
	if len(others) == 0 {
		return v
	}
	sorted := slices.SortedFunc(slices.Values(others), func(a, b otherClock) int { return int(a.ahead/time.Second - b.ahead/time.Second) })
	v.off = sorted[len(sorted)/2].ahead
	servers, own := 0, 1
	for _, o := range others {
		if o.server && o.ahead.Abs() > maxSkew {
			v.differ = true
		}
		if o.server && o.ahead.Abs() <= maxSkew {
			own++
		}
		if (o.ahead - v.off).Abs() <= maxSkew {
			v.by = append(v.by, o.machine)
			if o.server {
				servers++
			}
		}
	}
	slices.Sort(v.by)
	v.wrong = v.off.Abs() > maxSkew && 2*len(v.by) > len(others)+1 && servers >= own
	return v
}

// forget drops what was held against the own clock, unless it has been told already: that stays until looks say
// otherwise.
func (c *clocks) forget() {
	if wrong, _ := c.state(); wrong == "" {
		c.looks, c.calm = 0, 0
		c.note("")
	}
}

// conclude notes what the comparison says, and tells the operator.
func (c *clocks) conclude(ctx context.Context, v comparison) {
	switch {
	case v.wrong:
		if c.calm = 0; c.looks == 0 {
			c.since = time.Now()
		}
		c.looks++
	case c.looks > 0:
		if c.calm++; c.calm == 1 {
			return // somebody may just not have been heard
		}
		c.looks = 0
	}
	before, _ := c.state()
	text := ""
	if c.looks > 1 && time.Since(c.since) >= c.times.stands {
		text = v.text()
	}
	c.note(text)
	switch {
	case text == "" && before != "":
		c.told = time.Time{}
		c.log.Info("nobody's clock says any more that the one of this server is wrong")
		if c.shown {
			c.say("")
		}
		c.shown = false
	case text != "" && (before == "" || time.Since(c.told) > clockSay):
		c.told, c.shown = time.Now(), true
		c.log.Error("wrong clock", "error", text)
		c.say(text)
		c.event(ctx, text)
	case v.differ && text == "" && time.Since(c.told) > clockSay:
		c.told = time.Now()
		c.log.Warn("the clocks of the cluster's servers differ; certificates that one signs others may refuse", "by", v.off.Abs(), "others", v.by)
	}
}

// text tells what is wrong with the own clock.
func (v comparison) text() string {
	direction := "ahead of"
	if v.off > 0 {
		direction = "behind"
	}
	return fmt.Sprintf("the clock of this server is %v %s that of %s: set it, or give the machine a time server. "+
		"Another server leads meanwhile", v.off.Abs(), direction, machines(v.by))
}

// note lets others know what the looks said.
func (c *clocks) note(wrong string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubted = c.looks > 1
	if (c.wrong == "") != (wrong == "") {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.wrong = wrong
}

// machines lists some names for a person.
func machines(all []string) string {
	const most = 3
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d other machines", strings.Join(all[:most], ", "), len(all)-most)
}

// event tells on the server's Node.
func (c *clocks) event(ctx context.Context, text string) {
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	err := nodeevent.Create(ctx, c.client, nodeevent.Event{Node: c.node, At: c.now(), Warning: true, Reason: "WrongClock", Message: text})
	if err != nil {
		c.log.Warn("wrong clock: no event", "error", err)
	}
}

// doubt reports whether to leave a free lease to others.
func (c *clocks) doubt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doubted
}

// state returns what has been wrong with the own clock for long, "" for nothing, and what is closed when that changes.
func (c *clocks) state() (wrong string, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrong, c.changed
}

// awaitWrong returns what is wrong with the own clock once something has been for long; "" when ctx ended.
func (c *clocks) awaitWrong(ctx context.Context) string {
	for {
		wrong, changed := c.state()
		if wrong != "" {
			return wrong
		}
		select {
		case <-ctx.Done():
			return ""
		case <-changed:
		}
	}
}
