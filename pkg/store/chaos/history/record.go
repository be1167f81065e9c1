package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is what a request asks for.
type Kind int

// The kinds of requests; the comments name their forms in etcd's API.
const (
	Get    Kind = iota // a range of one key
	List               // a range of all keys under the prefix
	Past               // a list at the revision Expect
	Put                // an unconditional put
	Create             // a put if the key's revision is 0
	Update             // a put if the key's revision is Expect, else a get
	Delete             // a delete if the key's revision is Expect, else a get
)

func (k Kind) String() string {
	return [...]string{"get", "list", "past", "put", "create", "update", "delete"}[k]
}

// writes says that a request of this kind may change something.
func (k Kind) writes() bool { return k >= Put }

// KV is a key as a read shows it.
type KV struct {
	Key, Value                 string
	Created, Modified, Version int64
}

func (kv KV) String() string {
	return fmt.Sprintf("%s=%s@%d(created %d, version %d)", kv.Key, kv.Value, kv.Modified, kv.Created, kv.Version)
}

// Operation is one request of a client and its answer.
type Operation struct {
	Client int // its number, from 0
	Node   int // the node that it is connected to
	Kind   Kind
	Key    string // not of lists
	Value  string // what a Put, Create or Update writes; never the same twice in a history
	Expect int64  // the revision that an Update or Delete compares with, or that a Past reads at

	// Call and Return are times since the history began. Without an answer
	// Return is when the client gave up.
	Call, Return time.Duration

	// Err says why the client got no answer; the outcome is unknown then.
	Err string
	// The rest is the answer.
	Revision int64 // of the header
	Done     bool  // the write took place; false: the comparison failed
	Found    []KV  // what a read, or the get after a failed comparison, found
	Count    int64 // of a list
}

func (o Operation) unknown() bool { return o.Err != "" }

// String tells the request and its answer in one line.
func (o Operation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", o.Kind, o.Key)
	if o.Value != "" {
		fmt.Fprintf(&b, "=%s", o.Value)
	}
	if o.Expect != 0 {
		fmt.Fprintf(&b, " at %d", o.Expect)
	}
	switch {
	case o.unknown():
		fmt.Fprintf(&b, ": unknown: %s", o.Err)
	case o.Done:
		fmt.Fprintf(&b, ": done, revision %d", o.Revision)
	default:
		fmt.Fprintf(&b, ": found %v, revision %d", o.Found, o.Revision)
	}
	return b.String()
}

// line is String with who, where and when.
func (o Operation) line() string {
	return fmt.Sprintf("%9.4fs %9.4fs client %d node %d: %s", o.Call.Seconds(), o.Return.Seconds(), o.Client, o.Node, o)
}

// Event is a change as a watch delivers it. A deletion has no value.
type Event struct {
	KV
	Deleted bool
	Prev    KV // what it replaced; zero for a creation
}

func (e Event) String() string {
	if e.Deleted {
		return fmt.Sprintf("deletion of %s@%d", e.Key, e.Modified)
	}
	return e.KV.String()
}

// Item is what a watch delivered at a time: an event, or the word that every
// event up to the revision Progress was delivered.
type Item struct {
	At       time.Duration
	Event    Event
	Progress int64
}

// Stream is what a watch through a node delivered from a revision on. A
// standing watch is begun anew where it ended, until all is over; a passing
// one ends early.
type Stream struct {
	Node    int
	From    int64
	Passing bool
	Items   []Item
}

func (s Stream) String() string {
	if s.Passing {
		return fmt.Sprintf("a watch of node %d from revision %d on", s.Node, s.From)
	}
	return fmt.Sprintf("the watch of node %d", s.Node)
}

// History is what all clients saw. Recording is safe for concurrent use.
type History struct {
	start time.Time

	mu      sync.Mutex
	ops     []Operation
	streams map[int]*Stream // of the standing watches, by node
	passing []*Stream
	told    map[int]int64 // node to the newest revision its standing watch has told of
	seen    map[int]int64 // the same of events alone
	news    chan struct{} // closed and replaced whenever a watch told something
}

// New begins a history.
func New() *History {
	return &History{start: time.Now(), streams: map[int]*Stream{}, told: map[int]int64{}, seen: map[int]int64{}, news: make(chan struct{})}
}

// Now is the time since the history began, by the monotonic clock.
func (h *History) Now() time.Duration { return time.Since(h.start) }

// Add records a finished operation.
func (h *History) Add(o Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// Watched records what the standing watch of a node delivered.
func (h *History) Watched(node int, items ...Item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.streams[node]
	if s == nil {
		s = &Stream{Node: node}
		h.streams[node] = s
	}
	s.Items = append(s.Items, items...)
	for _, i := range items {
		h.told[node] = max(h.told[node], i.Progress, i.Event.Modified)
		h.seen[node] = max(h.seen[node], i.Event.Modified)
	}
	close(h.news)
	h.news = make(chan struct{})
}

// Pass begins a passing watch. The function records what it delivered.
func (h *History) Pass(node int, from int64) func(items ...Item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &Stream{Node: node, From: from, Passing: true}
	h.passing = append(h.passing, s)
	return func(items ...Item) {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.Items = append(s.Items, items...)
	}
}

// Seen is the newest revision whose event the standing watches of all nodes
// have delivered.
func (h *History) Seen(nodes int) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	oldest := h.seen[0]
	for node := range nodes {
		oldest = min(oldest, h.seen[node])
	}
	return oldest
}

// Reached returns whether the standing watch of a node has told of revision, and a
// channel that is closed when there is more to know.
func (h *History) Reached(node int, revision int64) (bool, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told[node] >= revision, h.news
}

// Operations returns the operations recorded so far.
func (h *History) Operations() []Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Operation(nil), h.ops...)
}

// Streams returns what the watches delivered so far.
func (h *History) Streams() []Stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Stream
	for _, s := range slices.Concat(slices.Collect(maps.Values(h.streams)), h.passing) {
		all = append(all, Stream{s.Node, s.From, s.Passing, append([]Item(nil), s.Items...)})
	}
	return all
}
