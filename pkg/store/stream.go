package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// The apiserver's own record of compactions, and where kine's front keeps
	// it: beside the key that its SQL backends use themselves.
	compactKey       = "compact_rev_key"
	compactKeyStored = "compact_rev_key_apiserver"
	// invalidWatch addresses all watches of a stream (clientv3.InvalidWatchID).
	invalidWatch = -1
	// progressTries bounds how often a progress report starts anew because
	// events overtook it; the client asks again.
	progressTries = 10
)

// stream is one client's stream of watches. kine's own (v0.16.4) wakes ten
// times a second for each stream, answers a progress request up to 100 ms late
// and can claim a revision before another watch of the stream has its events.
type stream struct {
	source Source
	tasks  sync.WaitGroup
	asked  chan struct{} // a progress request waits
	failed chan error    // buffered; what ends the whole stream

	sending sync.Mutex // held during Send, and guards sent
	grpc    etcdserverpb.Watch_WatchServer
	sent    int64 // the newest revision of an event or a report sent

	mu      sync.Mutex
	last    int64 // the newest watch's id
	watches map[int64]*streamed
	ended   bool // no more tasks
}

// streamed is a watch of a stream.
type streamed struct {
	id      int64
	request *etcdserverpb.WatchCreateRequest
	cancel  context.CancelFunc
	marks   chan mark
	done    chan struct{}
}

// mark asks a watch to send all that waits, and then to answer.
type mark struct {
	report   int64 // when not 0, the revision to report for this watch alone
	answered chan<- struct{}
}

// Watch serves one stream of watches until the client hangs up or the server
// stops.
func (s *Server) Watch(ws etcdserverpb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(ws.Context())
	st := &stream{source: s.source, grpc: ws, asked: make(chan struct{}, 1), failed: make(chan error, 1), watches: map[int64]*streamed{}}
	st.tasks.Go(func() { st.progress(ctx) })
	go func() { st.fail(st.receive(ctx)) }()
	var err error
	select {
	case err = <-st.failed:
	case <-s.stopping:
		err = rpctypes.ErrGRPCStopped
	}
	cancel()
	st.mu.Lock()
	st.ended = true
	st.mu.Unlock()
	st.tasks.Wait()
	return err
}

// start runs a task that Watch waits for, unless the stream has ended: then it
// reports false.
func (s *stream) start(task func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.tasks.Go(task)
	}
	return !s.ended
}

// fail ends the stream, unless it is ending.
func (s *stream) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// receive obeys the client's requests.
func (s *stream) receive(ctx context.Context) error {
	for {
		msg, err := s.grpc.Recv()
		if err != nil {
			return err
		}
		if r := msg.GetCreateRequest(); r != nil {
			if err := s.create(ctx, r); err != nil {
				return err
			}
		}
		if r := msg.GetCancelRequest(); r != nil {
			s.mu.Lock()
			w := s.watches[r.WatchId]
			s.mu.Unlock()
			if w != nil {
				w.cancel()
			}
		}
		if msg.GetProgressRequest() != nil {
			select {
			case s.asked <- struct{}{}:
			default:
			}
		}
	}
}

// create starts a watch.
func (s *stream) create(ctx context.Context, r *etcdserverpb.WatchCreateRequest) error {
	current := s.source.Head()
	if r.WatchId != 0 || len(r.Filters) > 0 || r.StartRevision < 0 {
		return s.send(&etcdserverpb.WatchResponse{
			Header: header(current), WatchId: invalidWatch, Created: true, Canceled: true, CancelReason: server.ErrInvalidWatch.Error(),
		})
	}
	if r.StartRevision == 0 {
		r.StartRevision = current + 1
	}
	if string(r.Key) == compactKey {
		r.Key = []byte(compactKeyStored)
	}
	watching, cancel := context.WithCancel(ctx)
	w := &streamed{request: r, cancel: cancel, marks: make(chan mark), done: make(chan struct{})}
	// Who sees the id counted finds the watch, here and in the feed.
	s.mu.Lock()
	s.last++
	w.id = s.last
	s.watches[w.id] = w
	result := s.source.Watch(watching, string(r.Key), string(r.RangeEnd), r.StartRevision)
	s.mu.Unlock()
	if err := s.send(&etcdserverpb.WatchResponse{Header: header(current), WatchId: w.id, Created: true}); err != nil {
		cancel()
		return err
	}
	started := s.start(func() {
		err := s.serve(w, result)
		asked := watching.Err() != nil // by the client, or the stream ends
		cancel()
		if asked || errors.Is(err, server.ErrCompacted) {
			s.end(w, err) // before any report that no longer waits for it
		} else {
			// A watch that the server cancels by itself is one that etcd's client
			// panics on when a report follows (etcd issue 21969). It resumes all
			// watches of a stream that breaks off.
			s.fail(interrupted(err))
			<-ctx.Done() // No report may say that this watch has had all.
		}
		close(w.done)
		s.mu.Lock()
		delete(s.watches, w.id)
		s.mu.Unlock()
	})
	if !started {
		cancel()
		return context.Canceled
	}
	return nil
}

// serve sends the events of a watch until it ends.
func (s *stream) serve(w *streamed, result server.WatchResult) error {
	if result.CompactRevision != 0 {
		return server.ErrCompacted
	}
	for {
		select {
		case events, ok := <-result.Events:
			if !ok {
				return ending(result)
			}
			if err := s.sendEvents(w, events); err != nil {
				return err
			}
		case m := <-w.marks:
			if ok, err := s.flush(w, result.Events, m); err != nil {
				return err
			} else if !ok {
				return ending(result)
			}
		}
	}
}

// ending returns why the channel of events was closed.
func ending(result server.WatchResult) error {
	select {
	case err := <-result.Errorc:
		return err
	default:
		return nil
	}
}

// interrupted is the error that makes a client resume its watches.
func interrupted(cause error) error {
	if cause == nil {
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	}
	return status.Error(codes.Unavailable, "store: watch: "+cause.Error())
}

// flush sends what waits, and answers a mark. It reports false, without an
// answer, when the channel is closed: events may be missing.
func (s *stream) flush(w *streamed, from <-chan []*server.Event, m mark) (bool, error) {
	for {
		select {
		case events, ok := <-from:
			if !ok {
				return false, nil
			}
			if err := s.sendEvents(w, events); err != nil {
				return false, err
			}
			continue
		default:
		}
		m.answered <- struct{}{}
		if m.report == 0 || !w.request.ProgressNotify {
			return true, nil
		}
		_, err := s.report(w.id, m.report, w.id)
		return true, err
	}
}

// end tells the client that a watch has ended.
func (s *stream) end(w *streamed, cause error) {
	resp := &etcdserverpb.WatchResponse{Header: header(s.source.Head()), WatchId: w.id, Canceled: true}
	if cause != nil {
		resp.CancelReason = cause.Error()
	}
	if errors.Is(cause, server.ErrCompacted) {
		resp.CompactRevision = s.source.Compacted()
	}
	if s.grpc.Context().Err() == nil {
		_ = s.send(resp) // Who is gone need not be told.
	}
}

// progress answers progress requests, and reports unasked now and then to the
// watches that want it.
func (s *stream) progress(ctx context.Context) {
	// Not all streams at once.
	ticker := time.NewTicker(notifyInterval + rand.N(notifyInterval/10))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			at := s.source.Head()
			s.synchronise(ctx, at, at)
		case <-s.asked:
			for range progressTries {
				at := s.source.Head()
				newest, ok := s.synchronise(ctx, at, 0)
				if !ok {
					return
				}
				if done, err := s.report(invalidWatch, at, newest); done || err != nil {
					break
				}
			}
		}
	}
}

// synchronise returns true once all watches of the stream, up to that with the
// id newest, have sent all events up to a revision or have ended; false when
// ctx ends first.
func (s *stream) synchronise(ctx context.Context, at, report int64) (newest int64, ok bool) {
	s.mu.Lock()
	newest = s.last
	watches := make([]*streamed, 0, len(s.watches))
	for _, w := range s.watches {
		watches = append(watches, w)
	}
	s.mu.Unlock()
	s.source.WaitFor(ctx, at) // Then the events are in the watches' channels.
	answered := make(chan struct{}, len(watches))
	for _, w := range watches {
		select {
		case w.marks <- mark{report, answered}:
		case <-w.done:
			continue
		case <-ctx.Done():
			return newest, false
		}
		select {
		case <-answered:
		case <-w.done:
		case <-ctx.Done():
			return newest, false
		}
	}
	return newest, ctx.Err() == nil
}

// report tells the client that a watch, or all of them, have all events up to
// a revision. It reports false, and sends nothing, when later events were sent,
// for revisions would seem to go backwards, or when it is for all and there are
// newer ones.
func (s *stream) report(watch, at, newest int64) (bool, error) {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	more := s.last > newest
	s.mu.Unlock()
	if at < s.sent || watch == invalidWatch && more {
		return false, nil
	}
	s.sent = at
	return true, s.grpc.Send(&etcdserverpb.WatchResponse{Header: header(at), WatchId: watch})
}

func (s *stream) send(resp *etcdserverpb.WatchResponse) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.grpc.Send(resp)
}

func (s *stream) sendEvents(w *streamed, events []*server.Event) error {
	resp := &etcdserverpb.WatchResponse{WatchId: w.id, Events: make([]*mvccpb.Event, len(events))}
	for i, e := range events {
		resp.Events[i] = toEvent(e, w.request.PrevKv)
	}
	at := events[len(events)-1].KV.ModRevision
	resp.Header = header(at)
	s.sending.Lock()
	defer s.sending.Unlock()
	s.sent = max(s.sent, at)
	return s.grpc.Send(resp)
}

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func toEvent(e *server.Event, previous bool) *mvccpb.Event {
	out := &mvccpb.Event{Kv: toKeyValue(e.KV)}
	if e.Delete {
		out.Type = mvccpb.DELETE
	}
	if previous && e.PrevKV != nil {
		out.PrevKv = toKeyValue(e.PrevKV)
	}
	return out
}

func toKeyValue(kv *server.KeyValue) *mvccpb.KeyValue {
	out := &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version, Lease: kv.Lease,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
	if kv.Key == compactKeyStored {
		out.Key = []byte(compactKey)
		out.Version, out.Value = server.DecodeVersion(kv.Value)
	}
	return out
}
