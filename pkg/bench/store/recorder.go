package store

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// samples is how many objects of a resource are kept for each purpose.
const samples = 24

// recorder makes a Recording of the messages that it is shown.
type recorder struct {
	mu        sync.Mutex // guards all below
	pending   map[uint64][]byte
	resources map[string]*Resource
	rand      *rand.Rand
	err       error // the first one
}

func newRecorder() *recorder {
	return &recorder{pending: map[uint64][]byte{}, resources: map[string]*Resource{}, rand: rand.New(rand.NewPCG(1, 2))}
}

// observe takes a message into account.
func (r *recorder) observe(m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.note(m); err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", m.method, err)
	}
}

// note counts a unary call once it is answered, a stream's requests at once.
func (r *recorder) note(m message) error {
	switch m.method {
	case "/etcdserverpb.Watch/Watch":
		if m.answer {
			return nil
		}
		var w pb.WatchRequest
		if err := w.Unmarshal(m.data); err != nil {
			return err
		}
		if c := w.GetCreateRequest(); c != nil {
			if res := r.resource(c.Key); res != nil {
				res.Watches++
			}
		}
	case "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn":
		if !m.answer {
			r.pending[m.call] = m.data
			return nil
		}
		request := r.pending[m.call]
		delete(r.pending, m.call)
		if strings.HasSuffix(m.method, "Range") {
			return r.read(request)
		}
		return r.write(request, m.data)
	}
	return nil
}

func (r *recorder) resource(key []byte) *Resource {
	name, ok := resourceOf(string(key))
	if !ok {
		return nil // such as the clock of compactions
	}
	if r.resources[name] == nil {
		r.resources[name] = &Resource{Name: name}
	}
	return r.resources[name]
}

func (r *recorder) read(request []byte) error {
	var req pb.RangeRequest
	if err := req.Unmarshal(request); err != nil {
		return err
	}
	switch res := r.resource(req.Key); {
	case res == nil:
	case req.CountOnly:
		res.Counts++
	case len(req.RangeEnd) > 0:
		res.Lists++
	default:
		res.Gets++
	}
	return nil
}

// write notes a transaction of the apiserver: one comparison with a revision,
// one write. Those that failed are left out: each is repeated.
func (r *recorder) write(request, answer []byte) error {
	var req pb.TxnRequest
	var resp pb.TxnResponse
	if err := req.Unmarshal(request); err != nil {
		return err
	}
	if err := resp.Unmarshal(answer); err != nil {
		return err
	}
	if !resp.Succeeded || len(req.Success) != 1 || len(req.Compare) != 1 || req.Compare[0].Target != pb.Compare_MOD {
		return nil
	}
	res := r.resource(req.Compare[0].Key)
	if res == nil {
		return nil
	}
	if req.Success[0].GetRequestDeleteRange() != nil {
		res.Deletes++
		return nil
	}
	put := req.Success[0].GetRequestPut()
	if put == nil {
		return nil
	}
	o := object(string(put.Key), put.Value)
	if req.Compare[0].GetModRevision() > 0 {
		res.Updates++
		res.UpdatedBytes += int64(o.Size())
		r.sample(&res.Updated, o, res.Updates)
		return nil
	}
	res.Creates++
	res.CreatedBytes += int64(o.Size())
	r.sample(&res.Created, o, res.Creates)
	if put.Lease != 0 {
		res.Leased++
	}
	return nil
}

// sample keeps o, the nth of its kind, so that each of them is as likely kept.
func (r *recorder) sample(to *[]Object, o Object, n int) {
	if len(*to) < samples {
		*to = append(*to, o)
	} else if i := r.rand.IntN(n); i < samples {
		(*to)[i] = o
	}
}

// finish adds what is live at the end and returns the recording.
func (r *recorder) finish(live []*mvccpb.KeyValue) (*Recording, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	for _, kv := range live {
		if res := r.resource(kv.Key); res != nil {
			res.Live++
			res.KeptBytes += int64(len(kv.Value))
			r.sample(&res.Kept, object(string(kv.Key), kv.Value), res.Live)
		}
	}
	byName := func(a, b *Resource) int { return cmp.Compare(a.Name, b.Name) }
	var rec Recording
	for _, res := range slices.SortedFunc(maps.Values(r.resources), byName) {
		rec.Resources = append(rec.Resources, *res)
	}
	return &rec, nil
}
