package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrProtocol says that the other member does not speak a protocol.
var ErrProtocol = errors.New("protocol not spoken")

// ErrUnknown says that no address of a member is known.
var ErrUnknown = errors.New("no address is known")

// Config says who this member is.
type Config struct {
	ID          uint64
	Listen      string // host:port
	Credentials Credentials
	BookFile    string       // keeps the Book; "": memory only
	Logger      *slog.Logger // nil: slog.Default()
}

// Serve handles a connection of the member from. The connection is closed when
// it returns; ctx ends, and the connection is closed, when the Network closes.
type Serve func(ctx context.Context, from uint64, conn net.Conn)

// Stats count since the start.
type Stats struct {
	Accepted uint64 // connections given to a protocol's Serve
	Refused  uint64 // handshakes of others with this member that failed, or came when too many were in progress
	Dialed   uint64 // connections to others made
	Failed   uint64 // attempts to reach others that failed, one for each address
}

// Network is a member's end of the connections with all others.
type Network struct {
	config   Config
	log      *slog.Logger
	notes    *limiter
	keys     *keychain
	book     *Book
	listener net.Listener
	handlers map[string]Serve // fixed by Start
	servers  map[string]bool  // protocols that a witness may not speak; fixed by Start
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	accepted, refused, dialed, failed atomic.Uint64

	mu         sync.Mutex // guards the following
	started    bool
	closed     bool
	handshakes map[string]int // in progress, by the dialer's host
	shaking    int            // sum of handshakes
	failures   map[uint64]failure
	held       map[*tls.Conn]uint64 // what is served, and whose it is
}

// Listen opens the port and reads certificates and book. Connections are
// accepted after Start. The Network ends with ctx or by Close.
func Listen(ctx context.Context, c Config) (*Network, error) {
	if c.ID == 0 {
		return nil, errors.New("store network: the member has no ID")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	n := &Network{
		config: c, log: c.Logger, notes: newLimiter(time.Now),
		handlers: map[string]Serve{}, servers: map[string]bool{}, handshakes: map[string]int{}, failures: map[uint64]failure{},
		held: map[*tls.Conn]uint64{},
	}
	var err error
	if n.keys, err = newKeychain(c.Credentials, c.Logger, n.notes); err != nil {
		return nil, err
	}
	if err := n.Dates(); err != nil {
		n.log.Error("store: other members will refuse this one", "error", err)
	}
	lc := net.ListenConfig{Control: control, KeepAliveConfig: keepAlive}
	if n.listener, err = lc.Listen(ctx, "tcp", c.Listen); err != nil {
		return nil, fmt.Errorf("store network: %w", err)
	}
	n.book = openBook(c.BookFile, c.ID, c.Logger)
	n.ctx, n.cancel = context.WithCancel(ctx)
	return n, nil
}

// Handle sets who serves the connections of a protocol. To be called before
// Start.
func (n *Network) Handle(protocol string, serve func(ctx context.Context, from uint64, conn net.Conn)) {
	n.handlers[protocol] = serve
}

// HandleServers is Handle for a protocol that only servers may speak with this member: a witness is refused in the
// handshake, with ErrRefused where it dialed.
func (n *Network) HandleServers(protocol string, serve func(ctx context.Context, from uint64, conn net.Conn)) {
	n.servers[protocol] = true
	n.Handle(protocol, serve)
}

// Start begins to accept connections.
func (n *Network) Start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started || n.closed {
		return
	}
	n.started = true
	n.tasks.Go(n.accept)
}

// Addr is where the Network listens.
func (n *Network) Addr() net.Addr { return n.listener.Addr() }

// Book holds the addresses of the members.
func (n *Network) Book() *Book { return n.book }

// Stats are for metrics.
func (n *Network) Stats() Stats {
	return Stats{Accepted: n.accepted.Load(), Refused: n.refused.Load(), Dialed: n.dialed.Load(), Failed: n.failed.Load()}
}

// Dates says what is wrong with the period in which this member's certificate
// is valid. Listen does not fail for it: a board's clock may be set, and a
// certificate renewed, later.
func (n *Network) Dates() error { return n.keys.get().dates(n.config.Credentials, time.Now()) }

// Close stops listening, closes the connections that were accepted and waits
// until their Serve has returned. Connections that Dial returned are their
// callers'.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	err := n.listener.Close()
	n.tasks.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil // The context had ended.
	}
	return err
}

func (n *Network) protocols() []string {
	var all []string
	for p := range n.handlers {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}

// explainHandshake turns an error of a TLS handshake into one that says what
// to do.
func (n *Network) explainHandshake(err error) error {
	var (
		verification *tls.CertificateVerificationError
		op           *net.OpError
	)
	switch {
	case errors.As(err, &verification):
		return explain(err)
	case !errors.As(err, &op) || op.Op != "remote error":
		return explain(err)
	// The type of alerts is not exported; their text is that of AlertError.
	case op.Err.Error() == alertNoProtocol.Error():
		return fmt.Errorf("%w by the other side: %w", ErrProtocol, err)
	}
	m := n.keys.get()
	return fmt.Errorf("the other side refused our certificate %s (%s, valid %s): %w",
		n.config.Credentials.Certificate, m.leaf.Subject, period(m.leaf, time.Now()), err)
}

// alertNoProtocol is no_application_protocol of RFC 7301.
const alertNoProtocol = tls.AlertError(120)
