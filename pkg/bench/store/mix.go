package store

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
)

// uid finds identifiers in values: no two objects have the same ones.
var uid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// template is a recorded object of which others are made.
type template struct {
	Object
	resource int
	uids     [][]int // where its value has them
}

// mix makes objects and writes like those of a recording. It is read only, so
// clients share it.
type mix struct {
	resources []Resource
	// What the recorded machine had, created and updated. Each resource counts
	// as often as it did, its templates alike.
	kept, created, updated choice
	gets, lists            choice // of resources only: each has an empty template
	// updates of all writes; creations and deletions are half of the rest
	// each, since in the long run whatever is created is deleted or expires.
	updates float64
	// reads are the gets and lists of all requests, listing those of lists of
	// all reads.
	reads, listing float64
}

// choice draws templates.
type choice struct {
	bounds    []int // of resources: the sums of their weights
	templates [][]template
}

func newMix(r *Recording) (*mix, error) {
	m := &mix{resources: r.Resources}
	creates, updates, deletes, gets, lists := 0, 0, 0, 0, 0
	for i, res := range r.Resources {
		m.kept.add(i, res.Live, res.Kept)
		m.created.add(i, res.Creates, res.Created)
		m.updated.add(i, res.Updates, res.Updated)
		m.gets.add(i, res.Gets, []Object{{}})
		m.lists.add(i, res.Lists, []Object{{}})
		creates, updates, deletes = creates+res.Creates, updates+res.Updates, deletes+res.Deletes
		gets, lists = gets+res.Gets, lists+res.Lists
	}
	if len(m.kept.bounds) == 0 || creates == 0 || updates == 0 || gets == 0 || lists == 0 {
		return nil, errors.New("the recording lacks objects, creations, updates, gets or lists: record anew with ./build.sh bench store --record")
	}
	m.updates = float64(updates) / float64(updates+2*creates)
	m.reads = float64(gets+lists) / float64(gets+lists+creates+updates+deletes)
	m.listing = float64(lists) / float64(gets+lists)
	return m, nil
}

func (c *choice) add(resource, weight int, objects []Object) {
	if weight == 0 || len(objects) == 0 {
		return
	}
	var all []template
	for _, o := range objects {
		all = append(all, template{o, resource, uid.FindAllIndex(o.Value, -1)})
	}
	last := 0
	if n := len(c.bounds); n > 0 {
		last = c.bounds[n-1]
	}
	c.bounds, c.templates = append(c.bounds, last+weight), append(c.templates, all)
}

// draw returns a template, of the resource of that index if it has any and
// resource is not negative.
func (c *choice) draw(r *rand.Rand, resource int) *template {
	i, found := 0, false
	if resource >= 0 {
		i = slices.IndexFunc(c.templates, func(t []template) bool { return t[0].resource == resource })
		found = i >= 0
	}
	if !found {
		n := r.IntN(c.bounds[len(c.bounds)-1])
		i, _ = slices.BinarySearchFunc(c.bounds, n, func(bound, n int) int {
			if bound <= n {
				return -1
			}
			return 1
		})
	}
	return &c.templates[i][r.IntN(len(c.templates[i]))]
}

// value is a value like the template's: of the same size and nearly as
// compressible, with other identifiers and other ciphertext.
func (t *template) value(r *rand.Rand) []byte {
	v := slices.Grow(slices.Clone(t.Value), t.Secret)
	for _, at := range t.uids {
		id := v[at[0]:at[1]]
		for i := range id {
			if id[i] != '-' {
				id[i] = "0123456789abcdef"[r.IntN(16)]
			}
		}
	}
	for range t.Secret {
		v = append(v, byte(r.Uint32()))
	}
	return v
}

// key is a new key of the template's form.
func (t *template) key(client int, n int64) string {
	return fmt.Sprintf("%s-%s-%s", t.Key, strconv.FormatInt(int64(client), 36), strconv.FormatInt(n, 36))
}

// entry is an object that a system holds.
type entry struct {
	key      string
	resource int
	revision int64 // of its latest write; 0: not there, or not known whether
	made     bool  // by a slice of writes, not with the first data
}

// dataset makes entries, not yet written, with so many bytes of keys and
// values. The same arguments give the same ones.
func (m *mix) dataset(bytes int64) (entries []*entry, values [][]byte) {
	r := rand.New(rand.NewPCG(25, 25))
	for n := int64(0); bytes > 0; n++ {
		t := m.kept.draw(r, -1)
		e := &entry{key: t.key(0, n), resource: t.resource}
		entries, values = append(entries, e), append(values, t.value(r))
		bytes -= int64(len(e.key) + t.Size())
	}
	return entries, values
}

// busiest names the resource with the most updates among those that have a
// fair share of the objects.
func (m *mix) busiest() int {
	total := 0
	for _, res := range m.resources {
		total += res.Live
	}
	best := slices.MaxFunc(m.resources, func(a, b Resource) int {
		fair := func(r Resource) int {
			if r.Live*200 < total {
				return 0
			}
			return r.Updates
		}
		return cmp.Compare(fair(a), fair(b))
	})
	return slices.IndexFunc(m.resources, func(r Resource) bool { return r.Name == best.Name })
}
