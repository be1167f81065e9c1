package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/damage"
	"github.com/cairn-os/cairn/pkg/store/member"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/space"
)

// Protocols between members (see peer.Network.Handle).
const (
	protocolRaft   = "cairn-raft/1"
	protocolEtcd   = "cairn-etcd/1"
	protocolMember = "cairn-member/1"
	protocolTerm   = "cairn-term/1"
)

const (
	// watchInterval is how often one of several members looks who leads,
	// aloneInterval how often the only one does: nobody else can.
	watchInterval = 200 * time.Millisecond
	aloneInterval = 2 * time.Second
	// joinRest is the pause between two rounds through the join list.
	joinRest = 2 * time.Second
	// gossipInterval is how often addresses are exchanged with each member.
	gossipInterval = 30 * time.Second
	gossipLimit    = 5 * time.Second
	// transferLimit bounds the hand-over of leadership.
	transferLimit = 5 * time.Second
	// unsureMost is how often in a row the own member may not say who leads.
	unsureMost = 5
	// settleTime is how long a member that led goes on before it is closed:
	// dqlite aborts the process when it closes a leader, or one that was it a
	// moment ago, with entries on their way (uvAppendClose, sm_move).
	settleTime = time.Second
)

// Network says how a member is reached by others.
type Network struct {
	Listen    string   // host:port to listen on
	Advertise []string // host:port under which others reach it; the listener's own when empty
	// Own, when set, says so instead, each time that addresses are exchanged: they may change while the member runs.
	// While it fails, as on a machine whose cable is pulled, the others are told what they were told last. It may be called
	// from several goroutines.
	Own         func() ([]string, error)
	Credentials peer.Credentials
}

// Config is a node of the store.
type Config struct {
	Dir         string // holds the member's directory and what the store keeps beside it
	Socket      string // where clients connect
	AdminSocket string // where the operator connects; none when empty
	Name        string // of the machine, unique in the cluster
	Network     *Network
	Join        []string // addresses of members; a node without data joins their cluster
	// Peers, when set, tells at which further addresses members may be, each time it is asked. A node that knows no leader
	// looks there for its own cluster, and one without data joins there and does not begin another.
	Peers func() []string
	// Begun is a file that a node which begins a cluster leaves once it serves, outside Dir: with it, and without data or anybody to
	// join, it does not begin another. None when empty.
	Begun   string
	Witness bool
	Zone    string // failure domain
	Voters  int    // how many members should vote, 3 when 0
	// SnapshotInterval and SnapshotKeep say how often the leader takes a
	// snapshot and how many it keeps; 0: 6 hours and 5.
	SnapshotInterval time.Duration
	SnapshotKeep     int
	Logger           *slog.Logger
	Ready            func() // called once when clients are served
}

// Node is a running node of the store.
type Node struct {
	config  Config
	log     *slog.Logger
	member  *member.Member
	network *peer.Network
	peers   *inbox     // peers' HTTP connections
	failed  chan error // why the node must end; the first reason counts
	poked   chan struct{}
	news    chan struct{} // the address book has something to tell
	ready   sync.Once
	tasks   sync.WaitGroup
	disk    admin.Disk

	snapshots  snapshots
	membership sync.Mutex // held while the configuration changes

	mu        sync.Mutex
	current   *route
	seen      map[uint64]sight
	gone      map[uint64]bool      // members that were removed here
	strangers map[uint64]time.Time // in the address book and no members, since when
	askers    map[uint64]*asker
	joining   error // why a join has not succeeded yet
	removed   bool  // the others say that this is no member any more

	replaces uint64    // the member that this one was before its data were set aside
	tried    uint64    // the term of the last service; of lead alone
	led      time.Time // when this member served last; of lead alone, and after it
	space    *space.Monitor
	pressure atomic.Int32 // a store.Pressure: of the disk
}

// Run serves until ctx ends. It returns an error when the node cannot serve
// and a restart of the process is what may help.
func Run(ctx context.Context, c Config) error { return newNode(c).run(ctx) }

func newNode(c Config) *Node {
	return &Node{
		config: c, log: c.Logger, peers: newInbox("peers"), failed: make(chan error, 1), poked: make(chan struct{}, 1), news: make(chan struct{}, 1),
		current: &route{changed: make(chan struct{})}, seen: map[uint64]sight{}, gone: map[uint64]bool{}, strangers: map[uint64]time.Time{}, askers: map[uint64]*asker{},
	}
}

func (n *Node) run(ctx context.Context) (err error) {
	local, err := n.listen(ctx)
	if err != nil {
		return err
	}
	if err := n.start(ctx); err != nil {
		return errors.Join(err, local.Close())
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	task := func(what string, f func() error) {
		n.tasks.Go(func() {
			if err := f(); err != nil {
				n.fatal(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	task("serve", func() error { return n.accept(run, local) })
	if n.config.AdminSocket != "" {
		l, err := store.Listen(ctx, n.config.AdminSocket)
		if err != nil {
			return errors.Join(err, n.close())
		}
		task("admin API", func() error { return n.serveHTTP(run, l, n.handler(true)) })
	}
	task("member", func() error { return n.guard(run) })
	task("space", func() error { return n.followSpace(run) })
	task("mark", func() error { return n.mark(run) })
	if n.network != nil {
		task("peers", func() error { return n.serveHTTP(run, n.peers, n.handler(false)) })
		task("join", func() error { return n.join(run) })
		task("addresses", func() error { n.gossip(run); return nil })
		task("own addresses", func() error { n.followOwn(run); return nil })
		task("search", func() error { n.seek(run); return nil })
	}
	leading := make(chan struct{})
	go func() {
		defer close(leading)
		n.lead(run)
	}()
	select {
	case <-ctx.Done():
	case err = <-n.failed:
	}
	stop()
	<-leading
	n.tasks.Wait()
	return errors.Join(err, n.close())
}

// listen opens the clients' socket. Who connects before there is a leader
// waits.
func (n *Node) listen(ctx context.Context) (net.Listener, error) {
	if err := os.MkdirAll(n.config.Dir, 0o700); err != nil {
		return nil, err
	}
	return store.Listen(ctx, n.config.Socket)
}

// start runs the member and connects it.
func (n *Node) start(ctx context.Context) error {
	if err := n.watchSpace(ctx); err != nil {
		return err
	}
	if err := n.prepare(); err != nil {
		return err
	}
	sync, err := probeSync(n.config.Dir)
	if err != nil && !damage.IsFull(err) {
		return err
	}
	latency := latencyFor(sync)
	n.disk = admin.Disk{Sync: sync, Heartbeat: latency * 3 / 2, Election: latency * 15}
	if sync > slowSync {
		n.log.Warn("store: the disk is slow: each change of the cluster's state takes at least this long; use a better card or disk",
			"synchronous-write", sync, "election", n.disk.Election)
	}
	sole, err := soleVoter(n.config)
	if err != nil {
		return err
	}
	o := member.Options{Dir: memberDir(n.config.Dir), Latency: latency, NewTerm: sole, Logger: n.log}
	if n.config.Network != nil {
		o.Join = len(n.config.Join) > 0
		o.Dial = n.dialRaft
	}
	if n.member, err = member.Start(o); err != nil {
		return err
	}
	if n.config.Network == nil {
		return nil
	}
	// The network outlives ctx: leadership is handed over by it.
	network, err := peer.Listen(context.WithoutCancel(ctx), peer.Config{
		ID: n.member.ID(), Listen: n.config.Network.Listen, Credentials: n.config.Network.Credentials,
		BookFile: filepath.Join(n.config.Dir, bookFile), Logger: n.log,
	})
	if err != nil {
		return errors.Join(err, n.member.Close())
	}
	n.mu.Lock()
	n.network = network
	n.mu.Unlock()
	network.Book().Remove(n.replaces) // Its addresses are this member's.
	if err := n.announce(); err != nil {
		return errors.Join(err, network.Close(), n.member.Close())
	}
	network.Handle(protocolRaft, n.serveRaft)
	network.Handle(protocolTerm, func(_ context.Context, _ uint64, conn net.Conn) { _ = answerViews(conn, n.view) })
	network.HandleServers(protocolEtcd, n.serveEtcd)
	network.Handle(protocolMember, n.serveMember)
	network.Start()
	return nil
}

// dialRaft connects the member to another; the member starts before there is
// a network.
func (n *Node) dialRaft(ctx context.Context, id uint64) (net.Conn, error) {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network == nil {
		return nil, errors.New("not connected yet")
	}
	return network.Dial(ctx, id, protocolRaft)
}

func (n *Node) close() error {
	var errs []error
	if n.network != nil {
		n.mu.Lock()
		for _, a := range n.askers {
			a.close()
		}
		n.mu.Unlock()
		_ = n.peers.Close()
	}
	if rest := settleTime - time.Since(n.led); n.network != nil && !n.led.IsZero() && rest > 0 {
		<-time.After(rest)
	}
	errs = append(errs, n.member.Close())
	if err := damage.UpdateMark(memberDir(n.config.Dir)); err != nil {
		n.log.Warn("store: note how far the log has come", "error", err)
	}
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	return errors.Join(errs...)
}

// fatal ends the node, which its supervisor starts anew.
func (n *Node) fatal(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// poke makes the node look at once who leads.
func (n *Node) poke() {
	select {
	case n.poked <- struct{}{}:
	default:
	}
}

// lead follows leadership until ctx ends: it serves while this member leads.
func (n *Node) lead(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var over <-chan struct{}
		if s := n.route().service; s != nil {
			over = s.over
		}
		select {
		case <-ctx.Done():
			n.handOver()
			return
		case <-timer.C:
		case <-n.poked:
		case <-over:
		}
		next := watchInterval / 2
		if n.step(ctx) {
			next = n.pace(ctx)
		}
		timer.Reset(next)
	}
}

// pace is how long to wait until the next look who leads. Who joins is in the
// address book first, and then wakes the loop: see announce.
func (n *Node) pace(ctx context.Context) time.Duration {
	if n.network == nil {
		return aloneInterval
	}
	if len(n.entries()) > 1 {
		return watchInterval
	}
	// The book is no more than a hint.
	if infos, err := n.members(ctx); err != nil || len(infos) != 1 {
		return watchInterval
	}
	return aloneInterval
}

// step looks who leads and does what follows from it. It reports false when
// that should be tried again soon.
func (n *Node) step(ctx context.Context) bool {
	leader, own, err := n.leader(ctx)
	s := n.route().service
	if s != nil {
		if !n.lost(s, leader, err) {
			return true
		}
		n.log.Info("store: leadership lost", "term", s.term)
		n.endService(s)
		return false
	}
	if leader != n.member.ID() {
		n.setRoute(leader, own, nil)
		if leader != 0 {
			n.serving()
		}
		return leader != 0
	}
	n.setRoute(leader, true, nil)
	if s, err = n.openService(ctx); err != nil {
		if ctx.Err() == nil {
			n.log.Warn("store: this member leads and cannot serve yet", "error", err)
		}
		return false
	}
	n.setRoute(leader, true, s)
	// From now on changes are told to it; this is for those that came before.
	s.backend.SetPressure(store.Pressure(n.pressure.Load()))
	n.log.Info("store: this member leads", "term", s.term, "revision", s.backend.Head())
	n.serving()
	return true
}

// endService stops serving; connections wait for the next leader.
func (n *Node) endService(s *service) {
	n.setRoute(0, false, nil)
	if err := s.close(); err != nil {
		n.log.Debug("store: close", "error", err)
	}
	n.led = time.Now()
}

// lost says that a service has to end: its leadership is over. An answer that
// did not come in time says nothing, for a while: comparisons and reads do not
// rest on it.
func (n *Node) lost(s *service, leader uint64, err error) bool {
	select {
	case <-s.over:
		return true
	default:
	}
	if err != nil {
		s.unsure++
		return s.unsure > unsureMost
	}
	s.unsure = 0
	term, err := n.member.Term()
	return leader != n.member.ID() || err == nil && term != s.term
}

// serving tells once that clients are served.
func (n *Node) serving() {
	n.ready.Do(func() {
		n.noteBegun()
		if n.config.Ready != nil {
			n.config.Ready()
		}
	})
}

// leader returns who leads: as the own member knows it, or as the others do
// when it does not, because it has no vote. 0 is nobody.
func (n *Node) leader(ctx context.Context) (leader uint64, own bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	info, err := n.member.Leader(ctx)
	if err != nil {
		n.log.Debug("store: look for the leader", "error", err)
		return 0, false, err
	}
	if info.ID != 0 || n.network == nil {
		return info.ID, true, nil
	}
	entries := n.entries()
	leader = told(n.views(ctx), func(id uint64) bool { return entries[id].Witness })
	if leader == n.member.ID() {
		return 0, false, nil // It knows better itself.
	}
	return leader, false, nil
}

// told is who leads by what others say, 0 when nobody knows. The newest term counts. A witness is asked last: clients are
// brought to who leads, and it should not get them by saying that it does while servers know better.
func told(views map[uint64]view, witness func(id uint64) bool) uint64 {
	var servers, witnesses view
	for id, v := range views {
		newest := &servers
		if witness(id) {
			newest = &witnesses
		}
		if v.leader != 0 && v.term > newest.term {
			*newest = v
		}
	}
	if servers.leader != 0 {
		return servers.leader
	}
	return witnesses.leader
}

// viewAll asks everybody in the address book.
func (n *Node) viewAll(ctx context.Context) []view { return slices.Collect(maps.Values(n.views(ctx))) }

// views asks everybody in the address book, and returns what they say by who says it. Leaders who are no members as far
// as this member knows are those of a cluster that it left by a recovery.
func (n *Node) views(ctx context.Context) map[uint64]view {
	infos, err := n.member.Members(ctx)
	if err != nil {
		return nil
	}
	stranger := func(id uint64) bool {
		return id != 0 && len(infos) > 0 && !slices.ContainsFunc(infos, func(i member.Info) bool { return i.ID == id })
	}
	var mu sync.Mutex
	views := map[uint64]view{}
	var wg sync.WaitGroup
	for id := range n.entries() {
		if id == n.member.ID() {
			continue
		}
		wg.Go(func() {
			if v, err := n.ask(ctx, id); err == nil && !stranger(v.leader) {
				mu.Lock()
				views[id] = v
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return views
}

// view is what this member tells others: of leaders those that its own member
// knows. What it has from hearsay it does not pass on, or two members could
// tell each other of a leader that is gone. The term is read after the leader:
// it may be newer, never older.
func (n *Node) view() (view, error) {
	ctx, cancel := context.WithTimeout(context.Background(), roundLimit)
	defer cancel()
	r := n.route()
	leader := r.leader
	if !r.own {
		leader = 0
		if info, err := n.member.Leader(ctx); err == nil {
			leader = info.ID
		}
	}
	term, err := n.member.Term()
	return view{term, leader, n.full()}, err
}

// ask asks a member for its view.
func (n *Node) ask(ctx context.Context, id uint64) (view, error) {
	n.mu.Lock()
	a := n.askers[id]
	if a == nil {
		a = &asker{dial: func(ctx context.Context) (net.Conn, error) { return n.network.Dial(ctx, id, protocolTerm) }}
		n.askers[id] = a
	}
	n.mu.Unlock()
	return a.ask(ctx)
}

// handOver ends the service, if any, and gives leadership away, so that the
// others need not miss this member first.
func (n *Node) handOver() {
	s := n.route().service
	if s == nil {
		return
	}
	n.endService(s)
	if n.network == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferLimit)
	defer cancel()
	members, err := n.candidates(ctx, time.Now())
	if err != nil {
		return
	}
	if to, ok := successor(members); ok {
		if err := n.member.Transfer(ctx, to); err != nil {
			n.log.Warn("store: hand leadership over; the others elect a leader by themselves", "error", err)
			return
		}
		n.log.Info("store: leadership handed over", "member", member.Name(to))
	}
}
