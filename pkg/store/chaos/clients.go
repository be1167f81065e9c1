package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/cairn-os/cairn/pkg/store/chaos/history"
)

const (
	prefix = "/chaos/"
	// requestTimeout is how long a client waits for an answer. After it the
	// outcome is unknown.
	requestTimeout = 3 * time.Second
	// thinkTime is the mean time between two requests of a client.
	thinkTime = 12 * time.Millisecond
	// errorPause keeps clients of a dead node from asking all the time.
	errorPause = 100 * time.Millisecond
	// progressEvery is how often a watch is asked how far it is.
	progressEvery = 500 * time.Millisecond
	// visitTime is the mean time of a passing watch, and between two.
	visitTime = 700 * time.Millisecond
	// compactEvery is how often history is compacted, keepRevisions how much
	// of it is left: no standing watch may need what is gone.
	compactEvery  = 2 * time.Second
	keepRevisions = 30
	// pageSize is how many keys a page of a list holds.
	pageSize = 2
)

var keys = []string{prefix + "a", prefix + "b", prefix + "c", prefix + "d"}

// dial connects a client to a node's socket, as the apiserver does.
func dial(socket string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + socket},
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: time.Second,
		})},
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", socket, err)
	}
	return c, nil
}

// payload makes a value of its name. It is one to compress, and now and then
// larger than a page.
func payload(name string) string {
	size := 100
	switch {
	case strings.HasSuffix(name, "7"):
		size = 1500
	case strings.HasSuffix(name, "33"):
		size = 20000
	}
	return name + strings.Repeat(" "+name, size/(len(name)+1))
}

// nameOf is the name in a value, or the value if it is none of payload's.
func nameOf(value []byte) string {
	name, _, _ := strings.Cut(string(value), " ")
	if payload(name) != string(value) {
		return fmt.Sprintf("no value of ours: %q", value)
	}
	return name
}

// client is one user of the store.
type client struct {
	number, node int
	etcd         *clientv3.Client
	history      *history.History
	random       *rand.Rand
	// known are the newest revisions that it has seen, 0 of a key that did not
	// exist: what its comparisons expect.
	known map[string]int64
	// seen is a revision to read again, renewed by every eighth answer.
	seen    int64
	answers int
}

// mix is how often each kind of request comes.
var mix = []struct {
	kind   history.Kind
	weight int
}{
	{history.Get, 22}, {history.List, 12}, {history.Past, 6}, {history.Put, 14}, {history.Create, 12}, {history.Update, 24}, {history.Delete, 10},
}

// run sends requests until ctx ends. The one under way is waited for.
func (c *client) run(ctx context.Context) {
	for i := 0; ; i++ {
		think := min(time.Duration(c.random.ExpFloat64()*float64(thinkTime)), 10*thinkTime)
		o := c.next(i)
		if pause(ctx, think) != nil {
			return
		}
		if _, ok := c.do(context.WithoutCancel(ctx), o); !ok && pause(ctx, errorPause) != nil {
			return
		}
	}
}

// next draws a request. What it compares with depends on answers, the rest on
// the seed alone.
func (c *client) next(i int) history.Operation {
	total := 0
	for _, m := range mix {
		total += m.weight
	}
	n := c.random.IntN(total)
	key := keys[c.random.IntN(len(keys))]
	o := history.Operation{Client: c.number, Node: c.node, Key: key}
	for _, m := range mix {
		if n -= m.weight; n < 0 {
			o.Kind = m.kind
			break
		}
	}
	switch o.Kind {
	case history.List:
		o.Key = ""
	case history.Past:
		o.Key, o.Expect = "", c.seen
		if c.seen == 0 {
			o.Kind = history.List
		}
	case history.Update, history.Delete:
		if o.Expect = c.known[key]; o.Expect == 0 {
			o.Kind = history.Create
		}
	}
	switch o.Kind {
	case history.Put, history.Create, history.Update:
		o.Value = fmt.Sprintf("%d.%d", c.number, i)
	}
	return o
}

// do sends a request and records it with its answer, if there was one.
func (c *client) do(ctx context.Context, o history.Operation) (history.Operation, bool) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o.Call = c.history.Now()
	err := c.ask(ctx, &o)
	o.Return = c.history.Now()
	if err != nil {
		o.Err = err.Error()
	}
	c.history.Add(o)
	if err == nil {
		c.learn(o)
	}
	return o, err == nil
}

func (c *client) learn(o history.Operation) {
	switch {
	case o.Kind == history.Past:
		return
	case o.Done && o.Kind == history.Delete:
		c.known[o.Key] = 0
	case o.Done:
		c.known[o.Key] = o.Revision
	case o.Kind == history.List:
		clear(c.known)
	case o.Kind != history.Create:
		c.known[o.Key] = 0
	}
	for _, kv := range o.Found {
		c.known[kv.Key] = kv.Modified
	}
	if c.answers++; c.answers%8 == 1 {
		c.seen = o.Revision
	}
}

// ask puts a request in the form that the apiserver gives it.
func (c *client) ask(ctx context.Context, o *history.Operation) error {
	switch o.Kind {
	case history.Get:
		resp, err := c.etcd.Get(ctx, o.Key)
		if err != nil {
			return err
		}
		found(o, resp)
	case history.List, history.Past:
		opts := []clientv3.OpOption{clientv3.WithPrefix()}
		if o.Kind == history.Past {
			opts = append(opts, clientv3.WithRev(o.Expect))
		}
		if c.answers%3 == 0 {
			return c.askPages(ctx, o)
		}
		resp, err := c.etcd.Get(ctx, prefix, opts...)
		if err != nil {
			return err
		}
		found(o, resp)
	case history.Put:
		resp, err := c.etcd.Put(ctx, o.Key, payload(o.Value))
		if err != nil {
			return err
		}
		o.Done, o.Revision = true, resp.Header.Revision
	default:
		write := clientv3.OpPut(o.Key, payload(o.Value))
		if o.Kind == history.Delete {
			write = clientv3.OpDelete(o.Key)
		}
		txn := c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(o.Key), "=", o.Expect)).Then(write)
		if o.Kind != history.Create {
			txn = txn.Else(clientv3.OpGet(o.Key))
		}
		resp, err := txn.Commit()
		if err != nil {
			return err
		}
		o.Done, o.Revision = resp.Succeeded, resp.Header.Revision
		if !resp.Succeeded && o.Kind != history.Create {
			o.Found = pairs(resp.Responses[0].GetResponseRange().Kvs)
		}
	}
	return nil
}

// askPages lists in pages, all at the revision of the first one.
func (c *client) askPages(ctx context.Context, o *history.Operation) error {
	from, at := prefix, o.Expect
	for {
		resp, err := c.etcd.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(pageSize), clientv3.WithRev(at))
		if err != nil {
			return err
		}
		if o.Revision == 0 {
			o.Revision, o.Count = resp.Header.Revision, resp.Count
		}
		if at == 0 {
			at = resp.Header.Revision
		}
		o.Found = append(o.Found, pairs(resp.Kvs)...)
		if !resp.More || len(resp.Kvs) == 0 {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func found(o *history.Operation, resp *clientv3.GetResponse) {
	o.Revision, o.Count, o.Found = resp.Header.Revision, resp.Count, pairs(resp.Kvs)
}

func pairs(kvs []*mvccpb.KeyValue) []history.KV {
	var all []history.KV
	for _, kv := range kvs {
		all = append(all, pair(kv))
	}
	return all
}

func pair(kv *mvccpb.KeyValue) history.KV {
	if kv == nil {
		return history.KV{}
	}
	x := history.KV{Key: string(kv.Key), Created: kv.CreateRevision, Modified: kv.ModRevision, Version: kv.Version}
	if len(kv.Value) > 0 {
		x.Value = nameOf(kv.Value)
	}
	return x
}
