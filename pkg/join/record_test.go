package join

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

func (c *cluster) secretOf(node string) *corev1.Secret {
	c.t.Helper()
	s, err := c.client.CoreV1().Secrets(Namespace).Get(c.t.Context(), NodePrefix+node, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func TestRecord(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	mustRun(t, o)
	addresses := []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.7")}
	for range 2 {
		if err := SetAddresses(t.Context(), c.client, "shop", addresses); err != nil {
			t.Fatal(err)
		}
		if err := AddClientKey(t.Context(), c.client, "shop", "aa"); err != nil {
			t.Fatal(err)
		}
	}
	version := c.secretOf("shop").ResourceVersion
	slices.Reverse(addresses)
	if err := SetAddresses(t.Context(), c.client, "shop", addresses); err != nil || c.secretOf("shop").ResourceVersion != version {
		t.Errorf("SetAddresses of the same addresses wrote the record, or failed: %v", err)
	}
	if err := AddClientKey(t.Context(), c.client, "shop", "aa"); err != nil || c.secretOf("shop").ResourceVersion != version {
		t.Errorf("AddClientKey of the newest key wrote the record, or failed: %v", err)
	}
	for _, key := range []string{"bb", "cc", "aa", "dd"} {
		if err := AddClientKey(t.Context(), c.client, "shop", key); err != nil {
			t.Fatal(err)
		}
	}
	s := c.secretOf("shop")
	if got := string(s.Data["addresses"]); got != "192.0.2.7 2001:db8::7" {
		t.Errorf("addresses %q", got)
	}
	if got := string(s.Data["clientkey"]); got != "dd aa cc" {
		t.Errorf("client keys %q; want the newest three", got)
	}
	r, err := ReadNode(s)
	if err != nil || r.Name != "shop" || r.Role != membership.Agent || len(r.Addresses) != 2 || !slices.Equal(r.ClientKeys, []string{"dd", "aa", "cc"}) {
		t.Errorf("ReadNode = %+v, %v", r, err)
	}
	for _, bad := range []string{"", "a b"} {
		if err := AddClientKey(t.Context(), c.client, "shop", bad); err == nil {
			t.Errorf("AddClientKey(%q) was taken", bad)
		}
	}
	if err := SetAddresses(t.Context(), c.client, "nobody", addresses); !apierrors.IsNotFound(err) {
		t.Errorf("SetAddresses of nobody = %v; want NotFound", err)
	}
	if err := AddClientKey(t.Context(), c.client, "nobody", "aa"); !apierrors.IsNotFound(err) {
		t.Errorf("AddClientKey of nobody = %v; want NotFound", err)
	}
	if got, err := ReadNode(nil); got != nil || err != nil {
		t.Errorf("ReadNode(nil) = %v, %v", got, err)
	}
	if _, err := ReadNode(&corev1.Secret{Type: corev1.SecretTypeOpaque}); err == nil {
		t.Error("ReadNode took an opaque Secret")
	}
}

// TestRecordOfTheSameMachine keeps what was recorded of a machine that joins again, and nothing of another's.
func TestRecordOfTheSameMachine(t *testing.T) {
	c := newCluster(t)
	o, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	mustRun(t, o)
	address := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	fill := func() {
		if err := SetAddresses(t.Context(), c.client, "shop", address); err != nil {
			t.Fatal(err)
		}
		if err := AddClientKey(t.Context(), c.client, "shop", "aa"); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, addresses, keys string) {
		t.Helper()
		r, err := ReadNode(c.secretOf("shop"))
		if err != nil {
			t.Fatal(err)
		}
		if addressText(r.Addresses) != addresses || strings.Join(r.ClientKeys, " ") != keys {
			t.Errorf("%s: record %+v; want addresses %q and keys %q", when, r, addresses, keys)
		}
	}
	fill()
	if err := o.unjoin(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, o)
	want("joined again", "192.0.2.7", "aa")
	if err := Record(t.Context(), c.client, "shop", identityOf(t, o), membership.Server); err != nil {
		t.Fatal(err)
	}
	want("another role", "192.0.2.7", "aa")
	if err := Record(t.Context(), c.client, "shop", identityOf(t, o), membership.Agent); err != nil {
		t.Fatal(err)
	}
	c.heartbeat("shop")
	c.ready("shop", corev1.ConditionUnknown)
	other, _ := c.machine(membership.Agent, "shop", c.token(token.Agent))
	mustRun(t, other)
	want("another machine", "", "")
	fill()
	if err := Record(t.Context(), c.client, "shop", "someone", membership.Agent); err != nil {
		t.Fatal(err)
	}
	want("another machine, by Record", "", "")
}

// TestRecordRace adds keys from many sides at once.
func TestRecordRace(t *testing.T) {
	c := newCluster(t)
	done := make(chan error)
	for i := range 4 {
		go func() { done <- AddClientKey(t.Context(), c.client, "first", fmt.Sprint("k", i)) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if r, err := ReadNode(c.secretOf("first")); err != nil || len(r.ClientKeys) != maxClientKeys {
		t.Errorf("record %+v, %v", r, err)
	}
}

func TestForgetWitnesses(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"w1", "w2", "a"} {
		role := membership.Witness
		if name == "a" {
			role = membership.Agent
		}
		o, _ := c.machine(role, name, c.token(token.Server))
		o.Addresses = nil
		mustRun(t, o)
	}
	names := func() string {
		t.Helper()
		all, err := ListNodes(t.Context(), c.client)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range all {
			names = append(names, r.Name)
		}
		return strings.Join(names, " ")
	}
	sweep := func(members ...string) error { return forgetWitnesses(t.Context(), c.client, members, c.clock()) }
	if err := sweep("first"); err != nil || names() != "a first w1 w2" {
		t.Errorf("a sweep at once left %s, error %v", names(), err)
	}
	c.advance(forgetAfter)
	if err := sweep("first", "w1"); err != nil || names() != "a first w1" {
		t.Errorf("a sweep left %s, error %v", names(), err)
	}
	if err := sweep(); err == nil || names() != "a first w1" {
		t.Errorf("a sweep with no members left %s, error %v", names(), err)
	}
	if err := ForgetWitnesses(t.Context(), c.client, []string{"first", "w1"}); err != nil {
		t.Error(err)
	}
}
