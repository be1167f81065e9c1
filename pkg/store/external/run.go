package external

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/mysql"
	"github.com/k3s-io/kine/pkg/drivers/pgsql"
	"github.com/k3s-io/kine/pkg/tls"

	"github.com/cairn-os/cairn/pkg/store"
)

const (
	// maxOpen bounds this server's connections. PostgreSQL takes 100 by default,
	// and three servers shall fit in.
	maxOpen = 25
	// pollBatch and compactBatch are kine's own defaults, and so is the time that
	// a batch of a compaction may take.
	pollBatch      = 500
	compactBatch   = 1000
	compactTimeout = 5 * time.Second
)

// Config is what the machine's configuration says below cairn.datastore.
type Config struct {
	Endpoint string // a secret: it holds the password
	CAFile   string // PEM; verifies the server, in the place of the system's authorities
	CertFile string // PEM; with KeyFile, this server's certificate for the database
	KeyFile  string

	Ready  func() error         // called once, when the socket answers
	Status func(message string) // called with what is waited for; never holds a secret
}

func (c Config) tls() tls.Config {
	return tls.Config{CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}
}

// Run serves the database of c on a unix socket until ctx ends. It waits for a
// database that is not there yet, or does not let it in, for as long as it takes.
func Run(ctx context.Context, c Config, socket string, log *slog.Logger) (err error) {
	e, err := c.parse()
	if err != nil {
		return fmt.Errorf("cairn.datastore.endpoint: %w", err)
	}
	if e.warning != "" {
		log.Warn("store: "+e.warning, "datastore", e.String())
	}
	defer Attach(log, e.redact)()
	if err := e.await(ctx, log, c.say); err != nil {
		return nil // asked to stop
	}
	// Not ctx: the database is needed until the last request is answered.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var closing sync.WaitGroup
	defer closing.Wait()
	defer stop()
	b, err := e.connect(running, c, &closing, log)
	if err != nil {
		return err
	}
	listener, err := store.Listen(ctx, socket)
	if err != nil {
		return err
	}
	rev, err := b.CurrentRevision(ctx)
	if err != nil {
		return fmt.Errorf("read the current revision: %w", err)
	}
	log.Info("store: serving", "datastore", e.String(), "database", e.database, "socket", socket, "revision", rev)
	c.say("serving " + e.String())
	if c.Ready != nil {
		if err := c.Ready(); err != nil {
			log.Warn("store: notify readiness", "error", err)
		}
	}
	if err := store.NewServer(b).Serve(ctx, listener); err != nil {
		return err
	}
	log.Info("store: stopping")
	return nil
}

func (c Config) say(message string) {
	if c.Status != nil {
		c.Status(message)
	}
}

// connect opens the database, makes its tables where they are missing, and
// starts kine on it until ctx ends; closing is done when its connections are
// closed.
func (e *endpoint) connect(ctx context.Context, c Config, closing *sync.WaitGroup, log *slog.Logger) (*backend, error) {
	open := pgsql.New
	if e.mysql != nil {
		open = mysql.New
	}
	_, kine, err := open(ctx, closing, &drivers.Config{
		DataSourceName:       e.dsn,
		BackendTLSConfig:     c.tls(),
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxOpen: maxOpen},
		// No compaction but the apiserver's, as with etcd, and exactly to where it
		// says: it leaves five minutes of history.
		CompactInterval: 0, CompactMinRetain: 0,
		CompactTimeout: compactTimeout, CompactBatchSize: compactBatch, PollBatchSize: pollBatch,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %s", e, e.explainSetup(err))
	}
	b := &backend{Backend: kine, endpoint: e, outages: &outages{log: log, name: e.String()}}
	if err := b.Start(ctx); err != nil {
		return nil, fmt.Errorf("start on %s: %w", e, err)
	}
	if err := b.follow(ctx, closing, log); err != nil {
		return nil, fmt.Errorf("start on %s: %s", e, e.short(err))
	}
	return b, nil
}

// follow starts what watches are served from.
func (b *backend) follow(ctx context.Context, closing *sync.WaitGroup, log *slog.Logger) error {
	h, err := newHistory(b.endpoint, log)
	if err != nil {
		return err
	}
	if err := h.begin(ctx); err != nil {
		return errors.Join(err, h.db.Close())
	}
	b.history, b.feed = h, store.NewFeed(h, log)
	h.notify, h.report = b.feed.Notify, func(err error) { _ = b.toEtcd(err) }
	closing.Go(func() {
		var tasks sync.WaitGroup
		tasks.Go(func() { h.run(ctx) })
		tasks.Go(func() { b.feed.Run(ctx) })
		tasks.Wait()
		if err := h.db.Close(); err != nil {
			log.Warn("store: close the datastore", "error", b.endpoint.short(err))
		}
	})
	return nil
}

// explainSetup says what the user lacks when the tables cannot be made.
func (e *endpoint) explainSetup(err error) string {
	text := e.short(err)
	if strings.Contains(text, "denied") {
		return fmt.Sprintf("%s; user %q must own database %q, or may at least create tables and indexes in it", text, e.user, e.database)
	}
	return text
}
