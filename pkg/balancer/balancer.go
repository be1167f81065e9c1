// Package balancer is a node's own way to the apiservers: it forwards TCP connections from a loopback address to a
// server that works.
//
// A node has its kubelet, its proxy and its pod network talk to one local address that never changes. Behind it,
// connections go to one server at a time, for as long as it is ready: on a server to its own, on an agent to one that
// the node's name picks, so that agents spread. Servers are asked for /readyz all the time, the one in use most often,
// and every connection that cannot be made counts, too. When a server is dead, the connections to it are cut, because a
// watch on a machine without power hangs for a quarter of an hour otherwise; they are made again at once, elsewhere.
//
// A way that swallows packets is noticed within 5 s of its cut: 2.4 s, a tenth more or less, pass between two questions,
// and after 2 s without an answer to any of six packets nobody is there. That needs no traffic of clients, which a
// node may have none of for a while. Data that stays unacknowledged would tell as soon (TCP_USER_TIMEOUT), but not apart
// from a bad line: with 300 ms each way and every 50th packet lost, 3 s pass without an acknowledgement once in 600
// exchanges, and would break a connection that works. Cuts wait until another server has answered since the doubt began:
// when all are silent it is this machine's own cable. A time that ran out while this process did not get to run proves
// nothing.
//
// Busy is not dead: a server whose kernel takes connections and whose handshakes are not over within 4 s gets no new
// connections while there is a better one, and loses what it has after 15 s, provided that a whole check of another
// server, begun meanwhile, went well. When all handshakes are slow it is this machine that is too busy.
//
// The bytes are not looked at: clients do TLS with the apiserver itself. The list of servers survives restarts in a
// file, so that a node finds its cluster when the server that it once joined by is gone.
package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultListen is where a node's clients find their apiserver.
const DefaultListen = "127.0.0.1:6444"

// Options describe a balancer. Addresses of servers are host:port.
type Options struct {
	// Listen is an IPv4 loopback address; empty means DefaultListen. The same
	// port of ::1 is served as well where the machine has IPv6.
	Listen string
	// File keeps the list of servers between starts. Its directory must exist.
	File string
	// Initial are the servers that the node joined by: used while there is no
	// file, and later when nothing in the list answers.
	Initial []string
	// Prefer is the server used whenever it is ready: on servers, their own.
	// It need not be in the list.
	Prefer string
	// Seed is the node's name: it picks among equal servers.
	Seed string
	// TLS says whom to trust as a server, for checks, and by which name; a
	// client's certificate in it is not used. It is called for each check, so
	// that it may read files that appear or change. Nil, or an error of it,
	// leaves the check at whether somebody listens.
	TLS func() (*tls.Config, error)
	Log *slog.Logger
}

// Server is what Servers tells about one.
type Server struct {
	Address     string    `json:"address"`
	State       State     `json:"state"`
	Healthy     bool      `json:"healthy"` // State is Ready
	Active      bool      `json:"active"`  // new connections go to it
	Since       time.Time `json:"since"`   // of State, by this machine's clock
	Reason      string    `json:"reason,omitempty"`
	Connections int       `json:"connections"`
}

// timing holds the balancer's patience.
type timing struct {
	interval time.Duration // between checks of a server
	brisk    time.Duration // the same of one in use, when there is another to go to
	spare    time.Duration // the same of one that is ready, not in use and not the preferred one
	soon     time.Duration // until the check after a doubtful one; also between checks at least
	answer   time.Duration // for the TLS handshake, and again for /readyz
	dial     time.Duration // for a TCP connection
	silence  time.Duration // the same of a check, which makes several attempts
	stagger  time.Duration // until the next server is tried beside a silent one
	again    time.Duration // until a check tries the same one again beside a silent attempt
	grace    time.Duration // how long an unready server keeps its connections
	vanish   time.Duration // until the kernel gives up a silent peer
}

func defaultTiming() timing {
	return timing{
		interval: 5 * time.Second, brisk: 2400 * time.Millisecond, spare: 10 * time.Second, soon: time.Second,
		answer: 4 * time.Second, dial: 2 * time.Second, silence: 2 * time.Second,
		stagger: 500 * time.Millisecond, again: 350 * time.Millisecond, grace: 15 * time.Second, vanish: 15 * time.Second,
	}
}

// Balancer forwards connections while Run runs. Its methods are safe for
// concurrent use.
type Balancer struct {
	o         Options
	timing    timing
	pool      *pool
	list      *list
	listeners []net.Listener
}

// New reads the list of servers and begins to listen: clients may connect from
// now on and are served when Run runs, which must follow. A list that cannot
// be read is set aside; the log says so.
func New(o Options) (*Balancer, error) { return newBalancer(o, defaultTiming()) }

func newBalancer(o Options, t timing) (*Balancer, error) {
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	b := &Balancer{o: o, timing: t, list: &list{path: o.File}}
	servers, err := b.startingList()
	if err != nil {
		return nil, err
	}
	b.pool = &pool{
		prefer: o.Prefer, last: slices.Clone(o.Initial), seed: o.Seed, grace: t.grace, log: o.Log, now: time.Now,
		servers: map[string]*server{}, changed: make(chan struct{}, 1),
	}
	if err := b.listen(); err != nil {
		return nil, err
	}
	if err := b.checkLoop(append(servers, o.Initial...)); err != nil {
		return nil, errors.Join(err, b.closeListeners())
	}
	b.pool.set(servers)
	return b, nil
}

// startingList is the file's, or Initial.
func (b *Balancer) startingList() ([]string, error) {
	if b.o.Prefer != "" {
		if err := checkAddress(b.o.Prefer); err != nil {
			return nil, fmt.Errorf("preferred %w", err)
		}
	}
	servers, err := b.list.load()
	if err != nil {
		b.o.Log.Warn("starting with the servers that the node joined by", "err", err)
	}
	if len(servers) > 0 {
		return servers, nil
	}
	if len(b.o.Initial) == 0 && b.o.Prefer != "" {
		return []string{b.o.Prefer}, nil
	}
	servers, err = normalize(b.o.Initial)
	if err != nil {
		return nil, fmt.Errorf("initial servers: %w", err)
	}
	return servers, nil
}

// listen takes the IPv4 address, then the same port of ::1 if there is one.
func (b *Balancer) listen() error {
	config := net.ListenConfig{KeepAliveConfig: b.timing.keepAlive(), Control: b.control}
	first, err := config.Listen(context.Background(), "tcp", b.o.Listen)
	if err != nil {
		return fmt.Errorf("listen for the node's clients: %w", err)
	}
	b.listeners = []net.Listener{first}
	addr, ok := first.Addr().(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return errors.Join(fmt.Errorf("listen on %s: want a loopback address, for whoever reaches it reaches the cluster", b.o.Listen), b.closeListeners())
	}
	second, err := config.Listen(context.Background(), "tcp6", net.JoinHostPort("::1", strconv.Itoa(addr.Port)))
	switch {
	case err == nil:
		b.listeners = append(b.listeners, second)
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
		// A machine without IPv6.
	default:
		b.o.Log.Warn("clients cannot use IPv6 to reach the apiserver", "err", err)
	}
	return nil
}

func (b *Balancer) closeListeners() error {
	var problems []error
	for _, l := range b.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// checkLoop keeps a balancer from connecting to itself for ever.
func (b *Balancer) checkLoop(servers []string) error {
	for _, l := range b.listeners {
		if slices.Contains(servers, l.Addr().String()) {
			return fmt.Errorf("server %s: is this balancer itself", l.Addr())
		}
	}
	return nil
}

// Addr is the IPv4 address that clients connect to.
func (b *Balancer) Addr() string { return b.listeners[0].Addr().String() }

// Servers describes the servers, sorted by address.
func (b *Balancer) Servers() []Server { return b.pool.snapshot() }

// Set replaces the list of servers, in the file too when it differs.
// Connections to servers that stay are kept, those to servers that went are
// cut. The servers are used even if the file cannot be written.
func (b *Balancer) Set(servers []string) error {
	servers, err := normalize(servers)
	if err == nil {
		err = b.checkLoop(servers)
	}
	if err != nil {
		return err
	}
	b.pool.set(servers)
	return b.list.save(servers)
}

// Run forwards connections and checks servers until ctx ends, or nobody can
// be listened to any more. It leaves nothing running.
func (b *Balancer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	failed := make(chan error, len(b.listeners))
	for _, l := range b.listeners {
		group.Go(func() { failed <- b.accept(ctx, l, &group) })
	}
	group.Go(func() { b.watchAll(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	err = errors.Join(err, b.closeListeners())
	b.pool.closeAll()
	group.Wait()
	return err
}

// accept serves a listener until ctx ends.
func (b *Balancer) accept(ctx context.Context, l net.Listener, group *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil && ownFault(err):
			// Out of descriptors for a moment: clients wait in the queue.
			if !wait(ctx, b.timing.soon) {
				return nil
			}
			continue
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		client, ok := conn.(*net.TCPConn)
		if !ok {
			return errors.Join(fmt.Errorf("accept on %s: a %T", l.Addr(), conn), conn.Close())
		}
		group.Go(func() { b.serve(ctx, client) })
	}
}

// wait reports false when ctx has ended before d.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// serve is one client from beginning to end.
func (b *Balancer) serve(ctx context.Context, client *net.TCPConn) {
	s, upstream, err := b.connect(ctx, b.pool.order())
	if err != nil {
		client.Close()
		if ctx.Err() == nil {
			b.pool.lost(err)
		}
		return
	}
	c := &session{client: client, upstream: upstream}
	if !b.pool.join(s, c) || ctx.Err() != nil {
		c.cut()
		b.pool.leave(s, c, false)
		return
	}
	b.pool.leave(s, c, c.run())
}
