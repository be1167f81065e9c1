package history

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// script writes histories: requests one after the other, a millisecond each,
// and the watches of two nodes that deliver what the requests did.
type script struct {
	*History
	now time.Duration
	ops map[string]entry
	rev int64
}

func newScript() *script { return &script{History: New(), ops: map[string]entry{}, rev: 1} }

// add adds a request that took a millisecond.
func (s *script) add(o Operation) {
	o.Call, o.Return = s.now, s.now+time.Millisecond
	s.now += 2 * time.Millisecond
	s.Add(o)
}

// event applies a change and returns it as a watch delivers it.
func (s *script) event(key, value string) Item {
	before, existed := s.ops[key]
	s.rev++
	x := Event{KV: KV{key, value, before.created, s.rev, before.version + 1}, Deleted: value == ""}
	if existed {
		x.Prev = before.kv(key)
	} else {
		x.Created = s.rev
	}
	if x.Deleted {
		x.KV = KV{Key: key, Modified: s.rev}
		delete(s.ops, key)
	} else {
		s.ops[key] = entry{x.Value, x.Created, x.Modified, x.Version}
	}
	return Item{At: s.now + time.Millisecond, Event: x}
}

func (s *script) both(i Item) {
	s.Watched(0, i)
	s.Watched(1, i)
}

func (s *script) put(key, value string) int64 {
	s.both(s.event(key, value))
	s.add(Operation{Kind: Put, Key: key, Value: value, Done: true, Revision: s.rev})
	return s.rev
}

func (s *script) read(key string) Operation {
	o := Operation{Kind: Get, Key: key, Revision: s.rev}
	if e, ok := s.ops[key]; ok {
		o.Found = []KV{e.kv(key)}
	}
	return o
}

func (s *script) list() Operation {
	o := Operation{Kind: List, Revision: s.rev}
	for _, key := range []string{"a", "b"} {
		if e, ok := s.ops[key]; ok {
			o.Found = append(o.Found, e.kv(key))
			o.Count++
		}
	}
	return o
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		play func(s *script)
		want string // part of a problem; empty: none
	}{
		{"all kinds", func(s *script) {
			first := s.put("a", "1")
			past := s.list()
			s.add(s.read("a"))
			s.add(Operation{Kind: Create, Key: "a", Value: "2", Found: s.read("a").Found, Revision: s.rev})
			s.both(s.event("b", "3"))
			s.add(Operation{Kind: Create, Key: "b", Value: "3", Done: true, Revision: s.rev})
			s.both(s.event("a", "4"))
			s.add(Operation{Kind: Update, Key: "a", Value: "4", Expect: first, Done: true, Revision: s.rev})
			s.add(s.list())
			s.both(s.event("a", ""))
			s.add(Operation{Kind: Delete, Key: "a", Expect: s.rev - 1, Done: true, Revision: s.rev})
			s.add(Operation{Kind: Update, Key: "a", Value: "5", Expect: first, Revision: s.rev})
			s.add(s.list())
			past.Kind, past.Expect, past.Revision = Past, first, s.rev
			s.add(past)
			s.Watched(1, Item{Progress: s.rev})
		}, ""},
		{"an unknown write that took effect later", func(s *script) {
			s.add(Operation{Kind: Put, Key: "a", Value: "1", Err: "timeout"})
			s.add(s.read("a"))
			s.both(s.event("a", "1"))
			s.now += 2 * time.Millisecond
			s.add(s.read("a"))
		}, ""},
		{"unknown writes that never took effect", func(s *script) {
			s.put("a", "1")
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Err: "timeout"})
			s.add(Operation{Kind: Delete, Key: "a", Expect: s.rev, Err: "timeout"})
			s.add(s.read("a"))
		}, ""},
		{"an unknown deletion that took effect", func(s *script) {
			rev := s.put("a", "1")
			s.add(Operation{Kind: Delete, Key: "a", Expect: rev, Err: "timeout"})
			s.both(s.event("a", ""))
			s.now += 2 * time.Millisecond
			s.add(s.list())
		}, ""},
		{"stale read", func(s *script) {
			s.put("a", "1")
			old := s.read("a")
			s.put("a", "2")
			s.add(old)
		}, "not linearizable"},
		{"stale read with a new header", func(s *script) {
			s.put("a", "1")
			old := s.read("a")
			s.put("a", "2")
			old.Revision = s.rev
			s.add(old)
		}, "not linearizable"},
		{"stale read of an unknown write", func(s *script) {
			s.put("a", "1")
			old := s.read("a")
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Err: "timeout"})
			s.both(s.event("a", "2")) // told by the watches, so it has taken effect
			s.now += 2 * time.Millisecond
			s.add(old)
		}, "not linearizable"},
		{"stale list", func(s *script) {
			s.put("a", "1")
			s.put("b", "2")
			torn := s.list()
			s.put("a", "3")
			s.put("b", "4")
			now := s.list()
			torn.Found[0], torn.Revision = now.Found[0], now.Revision
			s.add(torn)
		}, "not linearizable"},
		{"comparison that fails though it holds", func(s *script) {
			rev := s.put("a", "1")
			s.add(Operation{Kind: Update, Key: "a", Value: "2", Expect: rev, Found: s.read("a").Found, Revision: s.rev})
		}, "not linearizable"},
		{"two creations of one key", func(s *script) {
			s.put("a", "1")
			s.both(s.event("a", "2"))
			s.add(Operation{Kind: Create, Key: "a", Value: "2", Done: true, Revision: s.rev})
		}, "not linearizable"},
		{"lost write", func(s *script) {
			s.put("a", "1")
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev + 1})
			s.add(s.read("a"))
		}, "lost: no watch told"},
		{"lost write whose revision another took", func(s *script) {
			s.put("a", "1")
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev + 1})
			s.put("a", "3")
		}, "lost: at the revision"},
		{"refused write that took effect", func(s *script) {
			rev := s.put("a", "1")
			s.both(s.event("a", "2"))
			s.add(Operation{Kind: Update, Key: "a", Value: "2", Expect: rev - 1, Found: []KV{{"a", "1", rev, rev, 1}}, Revision: rev})
		}, "refused, yet done"},
		{"write done twice", func(s *script) {
			s.put("a", "1")
			s.both(s.event("a", "1"))
		}, "one request wrote twice"},
		{"change that nobody asked for", func(s *script) {
			s.put("a", "1")
			s.both(s.event("a", ""))
		}, "nobody asked"},
		{"past that changes", func(s *script) {
			rev := s.put("a", "1")
			s.put("a", "2")
			past := s.list()
			past.Kind, past.Expect = Past, rev
			s.add(past)
		}, "the past changed"},
		{"watch that skips", func(s *script) {
			s.put("a", "1")
			s.Watched(0, s.event("a", "2"))
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev})
			s.put("a", "3")
		}, "watch of node 1 left out 1 revisions before 4"},
		{"watch that ends early", func(s *script) {
			s.put("a", "1")
			s.Watched(0, s.event("a", "2"))
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev})
		}, "watch of node 1 ended at revision 2"},
		{"watch that repeats", func(s *script) {
			s.put("a", "1")
			s.Watched(1, s.streams[1].Items[0])
		}, "delivered revision 2 twice"},
		{"watch out of order", func(s *script) {
			first, second := s.event("a", "1"), s.event("b", "2")
			s.Watched(0, first, second)
			s.Watched(1, second, first)
			s.add(Operation{Kind: Put, Key: "a", Value: "1", Done: true, Revision: 2})
			s.add(Operation{Kind: Put, Key: "b", Value: "2", Done: true, Revision: 3})
		}, "delivered revision 2 after 3"},
		{"watch that claims what it did not deliver", func(s *script) {
			s.Watched(1, Item{Progress: 2})
			s.put("a", "1")
		}, "had not delivered"},
		{"passing watches", func(s *script) {
			s.put("a", "1")
			record := s.Pass(0, s.rev+1)
			s.Pass(1, s.rev+1)
			i := s.event("a", "2")
			s.both(i)
			record(i, Item{Progress: s.rev})
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev})
			s.put("a", "3")
		}, ""},
		{"passing watch that begins too late", func(s *script) {
			record := s.Pass(0, s.rev+1)
			s.put("a", "1")
			i := s.event("a", "2")
			s.both(i)
			record(i)
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev})
		}, "a watch of node 0 from revision 2 on left out 1"},
		{"passing watch that begins too early", func(s *script) {
			i := s.event("a", "1")
			s.both(i)
			s.add(Operation{Kind: Put, Key: "a", Value: "1", Done: true, Revision: s.rev})
			s.Pass(0, s.rev+1)(i)
		}, "from revision 3 on delivered revision 2"},
		{"watches that disagree", func(s *script) {
			i := s.event("a", "1")
			s.Watched(0, i)
			i.Event.Value = "2"
			s.Watched(1, i)
			s.add(Operation{Kind: Put, Key: "a", Value: "1", Done: true, Revision: 2})
		}, "revision 2 is two changes"},
		{"event with a wrong predecessor", func(s *script) {
			s.put("a", "1")
			i := s.event("a", "2")
			i.Event.Prev.Value = "0"
			s.both(i)
			s.add(Operation{Kind: Put, Key: "a", Value: "2", Done: true, Revision: s.rev})
		}, "replaces"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			tt.play(s)
			v := s.Check()
			found := strings.Join(v.Problems, "\n")
			if tt.want == "" && !v.Ok() || !strings.Contains(found, tt.want) {
				t.Errorf("problems:\n%s\nwant %q", found, tt.want)
			}
		})
	}
}

// TestLong checks in a short time what a run of the chaos lane records.
func TestLong(t *testing.T) {
	s := newScript()
	for i := range 5000 {
		switch i % 3 {
		case 0:
			s.put([]string{"a", "b"}[i%2], fmt.Sprint(i))
		case 1:
			s.add(s.list())
		default:
			s.add(Operation{Kind: Put, Key: "a", Value: fmt.Sprint("lost", i), Err: "timeout"})
		}
	}
	began := time.Now()
	v := s.Check()
	if !v.Ok() || time.Since(began) > 30*time.Second {
		t.Errorf("check took %s: %q", time.Since(began), v.Problems)
	}
	old := s.list()
	s.put("a", "new")
	s.add(old)
	if v = s.Check(); v.Ok() {
		t.Error("a stale list is not noticed")
	}
	var page, text bytes.Buffer
	if err := v.Visualize(&page); err != nil || page.Len() == 0 {
		t.Errorf("page of %d bytes: %v", page.Len(), err)
	}
	if err := s.Write(&text); err != nil || !strings.Contains(text.String(), "put a=new: done") {
		t.Errorf("text of %d bytes: %v", text.Len(), err)
	}
	t.Logf("%d requests checked in %s", v.Requests, time.Since(began))
}
