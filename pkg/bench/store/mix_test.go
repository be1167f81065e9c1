package store

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func recordedMix(t *testing.T) (*Recording, *mix) {
	t.Helper()
	r, err := Recorded()
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMix(r)
	if err != nil {
		t.Fatal(err)
	}
	return r, m
}

// TestRecorded holds what the sources' recording must have, and must not.
func TestRecorded(t *testing.T) {
	r, _ := recordedMix(t)
	if len(recorded) > 200_000 {
		t.Errorf("the recording has %d bytes; want at most 200,000", len(recorded))
	}
	names := map[string]Resource{}
	for _, res := range r.Resources {
		names[res.Name] = res
		for _, o := range slices.Concat(res.Kept, res.Created, res.Updated) {
			if bytes.Contains(o.Value, []byte("PRIVATE KEY")) {
				t.Errorf("%s holds a key", o.Key)
			}
			if res.Name == "secrets" && o.Secret == 0 {
				t.Errorf("%s is in plain text", o.Key)
			}
		}
	}
	for _, want := range []string{"pods", "leases", "events", "minions", "configmaps", "secrets", "replicasets"} {
		if res := names[want]; res.Live == 0 || len(res.Kept) == 0 {
			t.Errorf("the recording lacks %s", want)
		}
	}
	if names["leases"].Updates == 0 || names["events"].Leased == 0 || names["pods"].Watches == 0 {
		t.Error("the recording lacks updates of leases, events with a lease or watches of pods")
	}
}

func TestDataset(t *testing.T) {
	r, m := recordedMix(t)
	entries, values := m.dataset(2e6)
	again, _ := m.dataset(2e6)
	if len(again) != len(entries) {
		t.Errorf("the second time %d entries; want %d as at first", len(again), len(entries))
	}
	size, keys, count := 0, map[string]bool{}, make([]int, len(r.Resources))
	for i, e := range entries {
		size += len(e.key) + len(values[i])
		keys[e.key] = true
		count[e.resource]++
		if name, _ := resourceOf(e.key); name != r.Resources[e.resource].Name {
			t.Fatalf("key %s is of resource %s; want %s", e.key, name, r.Resources[e.resource].Name)
		}
	}
	if len(keys) != len(entries) {
		t.Errorf("%d entries have %d keys; want as many", len(entries), len(keys))
	}
	if size < 2e6 || size > 2.3e6 {
		t.Errorf("%d bytes; want a little over 2 MB", size)
	}
	live := 0
	for _, res := range r.Resources {
		live += res.Live
	}
	for i, res := range r.Resources {
		want, got := float64(res.Live)/float64(live), float64(count[i])/float64(len(entries))
		if math.Abs(want-got) > 0.05 {
			t.Errorf("%s are %.2f of all objects; want %.2f", res.Name, got, want)
		}
	}
}

func TestTemplateValue(t *testing.T) {
	const id = "01234567-89ab-cdef-0123-456789abcdef"
	c := choice{}
	c.add(3, 1, []Object{{Key: "/registry/secrets/a", Value: []byte("k8s:" + id + ":"), Secret: 20}})
	r := rand.New(rand.NewPCG(1, 1))
	tmpl := c.draw(r, -1)
	a, b := tmpl.value(r), tmpl.value(r)
	if len(a) != len(tmpl.Value)+20 || len(b) != len(a) {
		t.Errorf("values of %d and %d bytes; want %d", len(a), len(b), len(tmpl.Value)+20)
	}
	if bytes.Equal(a[:41], b[:41]) || !strings.HasPrefix(string(a), "k8s:") || a[12] != '-' {
		t.Errorf("%q and %q: want other identifiers of the same form", a[:41], b[:41])
	}
	if !bytes.Equal(tmpl.Value, []byte("k8s:"+id+":")) {
		t.Error("the template has changed")
	}
	if got := c.draw(r, 3); got != tmpl {
		t.Error("draw by resource finds another template")
	}
}
