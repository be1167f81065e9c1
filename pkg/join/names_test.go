package join

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

func TestNodeNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"shop-1": true, "shop-1.example.org": true, "10": true, "kubernetes-1": true, "svc": true, "svc-1.lan": true, "localhost1": true,
		"10.0.0.2": false, "127.0.0.1": false, "localhost": false, "localhost.localdomain": false, "a.localhost": false,
		"kubernetes": false, "kubernetes.default": false, "kubernetes.default.svc.cluster.local": false, "hook.shop.svc": false,
		"hook.shop.svc.cluster.local": false, "Shop": false, "": false, "::1": false,
	} {
		if err := checkNodeName(name); (err == nil) != ok {
			t.Errorf("checkNodeName(%q) = %v; want good %v", name, err, ok)
		}
	}
	c := newCluster(t)
	for _, role := range []membership.Role{membership.Agent, membership.Server, membership.Witness} {
		o, _ := c.machine(role, "192.0.2.1", c.token(token.Server))
		wantRefusal(t, o, run(t, o), CodeName, "address")
	}
}

// again lets the machine try as Run would, until that ends or the time is over, and returns how long it took. beat is called
// before each try.
func (c *cluster) again(t *testing.T, o Options, limit time.Duration, beat func()) (time.Duration, error) {
	t.Helper()
	for begin := c.clock(); ; c.advance(refusalPause) {
		if beat != nil {
			beat()
		}
		err := run(t, o)
		if took := c.clock().Sub(begin); err == nil || took >= limit {
			return took, err
		}
	}
}

func TestNames(t *testing.T) {
	c := newCluster(t)
	first, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	mustRun(t, first)
	wiped := func() Options { o, _ := c.machine(membership.Agent, "shop", c.token(token.Agent)); return o }

	o := wiped()
	wantRefusal(t, o, run(t, o), CodeName, "joined as shop") // the first is still starting
	c.heartbeat("shop")
	wantRefusal(t, o, run(t, o), CodeName, "alive")
	// The one that is alive keeps its name however long another asks.
	if took, err := c.again(t, o, 20*time.Minute, func() { c.heartbeat("shop") }); !IsRefusal(err) {
		t.Fatalf("the name of a living node was given away after %v: %v", took, err)
	}
	// A server that starts anew knows nothing yet, and gives nothing away.
	c.server.watch = watch{now: c.clock}
	c.advance(time.Hour)
	wantRefusal(t, o, run(t, o), CodeName, "alive")
	// Wiped, and silent for a minute, though no controller says that the node is lost.
	if took, err := c.again(t, o, 2*time.Minute, nil); err != nil || took != time.Minute || c.identityOf("shop") != identityOf(t, o) {
		t.Errorf("the wiped machine got its name after %v: %v; want a minute", took, err)
	}
	// What the one before left says nothing of the one that joined a moment ago, for five minutes.
	c.ready("shop", corev1.ConditionUnknown)
	late := wiped()
	if took, err := c.again(t, late, 10*time.Minute, nil); err != nil || took != settling {
		t.Errorf("after %v: %v; want %v", took, err, settling)
	}
	// Lost by the controllers' clock: at once.
	c.heartbeat("shop")
	c.ready("shop", corev1.ConditionUnknown)
	mustRun(t, wiped())
	// Its Node deleted: at once as well.
	c.heartbeat("shop")
	if err := c.client.CoreV1().Nodes().Delete(t.Context(), "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	mustRun(t, wiped())
}

// TestOutage asks for the name of a node that could not be heard, because the cluster could not be written to.
func TestOutage(t *testing.T) {
	c := newCluster(t)
	first, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	mustRun(t, first)
	c.heartbeat("shop")
	o, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	wantRefusal(t, o, run(t, o), CodeName)
	c.advance(10 * time.Minute) // nobody is answered, nothing is written
	wantRefusal(t, o, run(t, o), CodeName)
	c.heartbeat("shop")
	c.advance(refusalPause)
	wantRefusal(t, o, run(t, o), CodeName)
}

func TestWitnessNames(t *testing.T) {
	c := newCluster(t)
	w, _ := c.machine(membership.Witness, "voter", c.token(token.Server))
	mustRun(t, w)
	c.advance(settling)
	online := func(is bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.online["voter"] = is
	}
	online(true) // it has no Lease: the store knows
	w2, _ := c.machine(membership.Witness, "voter", c.token(token.Server))
	if _, err := c.again(t, w2, 10*time.Minute, nil); !IsRefusal(err) {
		t.Errorf("the name of a witness that is online was given away: %v", err)
	}
	online(false)
	if took, err := c.again(t, w2, 2*time.Minute, nil); err != nil || took > time.Minute {
		t.Errorf("after %v: %v", took, err)
	}
	if err := Forget(t.Context(), c.client, "voter"); err != nil {
		t.Fatal(err)
	}
	if err := Forget(t.Context(), c.client, "voter"); err != nil {
		t.Error("Forget twice:", err)
	}
	nodes, err := ListNodes(t.Context(), c.client)
	if err != nil || len(nodes) != 1 || nodes[0].Name != "first" {
		t.Errorf("ListNodes = %v, %v", nodes, err)
	}
}

// TestAddressesOfAgents shows that an agent cannot keep others out by what it says of itself.
func TestAddressesOfAgents(t *testing.T) {
	c := newCluster(t)
	address := netip.MustParseAddr("192.0.2.60")
	liar, _ := c.machine(membership.Agent, "liar", c.token(token.Agent))
	liar.Addresses = []netip.Addr{address} // nobody looked yet whether it has it
	mustRun(t, liar)
	c.heartbeat("liar")
	n, err := c.client.CoreV1().Nodes().Get(t.Context(), "liar", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}
	if _, err := c.client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	honest, _ := c.machine(membership.Server, "honest", c.token(token.Server))
	honest.Addresses = []netip.Addr{address, netip.MustParseAddr("2001:db8::60")}
	mustRun(t, honest)
	if r, err := getRecord(t.Context(), c.client, "honest"); err != nil || addressText(r.Addresses) != "192.0.2.60 2001:db8::60" {
		t.Errorf("record %+v, %v; want the server's addresses", r, err)
	}
	// From now on they are the server's, also while it starts.
	third, _ := c.machine(membership.Agent, "third", c.token(token.Agent))
	third.Addresses = []netip.Addr{address, netip.MustParseAddr("2001:db8::61")}
	wantRefusal(t, third, run(t, third), CodeAddress, "honest", "192.0.2.60")
	c.heartbeat("honest")
	wantRefusal(t, third, run(t, third), CodeAddress)
	// Many machines have the same address on a second network, or in a family that the cluster does not have.
	second, _ := c.machine(membership.Server, "second", c.token(token.Server))
	second.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.62"), address, netip.MustParseAddr("2001:db8::60")}
	mustRun(t, second)
	if err := Forget(t.Context(), c.client, "second"); err != nil {
		t.Fatal(err)
	}
	honest.Node = "renamed"
	if err := honest.unjoin(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, honest) // it may have its own address
	if err := Forget(t.Context(), c.client, "renamed"); err != nil {
		t.Fatal(err)
	}
	c.ready("honest", corev1.ConditionUnknown)
	mustRun(t, third)
}
