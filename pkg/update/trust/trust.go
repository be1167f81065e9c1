// Package trust decides which files of a release directory a machine believes: The Update Framework's client
// (theupdateframework.github.io/specification, 1.0), anchored in the running root file system.
//
// # What is believed
//
// The anchor, a root.json that the verity tree of the running root protects, names the keys; a chain of newer roots, each
// signed by the one before it, may have replaced them. The verification is go-tuf's (trustedmetadata). Its updater is not
// used: it writes its cache without a flush, begins anew at the anchor each time, so that keys which were taken back count
// again, takes no context, and never gets over a damaged cache file.
//
// # Time
//
// Metadata expire, so that nobody can hold a machine at an old state by repeating it. The time they are judged by is the
// later of the clock and the newest time that this machine has seen, which is kept in Dir/newest-time and never goes back:
// a clock that was set back, or that starts in 1970, opens nothing. The newest time comes from the build time of the
// running release, from the build times of verified manifests, and from the clock, but only while a server keeps it. The
// last two never push it further than one second behind the expiry of the newest verified timestamp.json: that is enough
// to keep that file expired for good, and metadata that are issued later, and so expire later, are always accepted again.
// So a clock in the far future, of a server too, refuses everything while it lasts, and after that at most what was
// issued before; it never locks a machine out for ever.
//
// # Floor
//
// The highest floor that any channel ever named is kept in Dir/floor and never goes down. A version below it is refused
// even when the cache of metadata was lost, and an old repository that has not expired is shown.
//
// # Power cuts
//
// Every file is replaced whole by pkg/atomicfile, in this order: Dir/trusted/N.root.json one after the other,
// newest-time, timestamp.json, snapshot.json, targets.json, then, when a channel is read, floor. A cut leaves the first of
// them new and the rest old, and perhaps a temporary file, which Open removes. Old files behind a new one only keep older
// versions out, and are replaced by the next Refresh. A file that a failing disk damaged is thrown away: without its
// roots the machine walks again from the anchor, without its timestamp it only knows by the floor what is too old.
package trust

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
)

// Why something is not believed. The errors of this package wrap one of these, or come from the source.
var (
	// ErrExpired: too old to be believed at this time.
	ErrExpired = errors.New("expired")
	// ErrSignature: too few signatures by keys that are trusted.
	ErrSignature = errors.New("not signed by the trusted keys")
	// ErrRollback: older than what was seen before.
	ErrRollback = errors.New("older than what this machine has seen")
	// ErrMixedUp: signed, but not for what was asked, or not for what lies beside it.
	ErrMixedUp = errors.New("mixed up")
	// ErrAltered: other bytes than those that were signed.
	ErrAltered = errors.New("altered or cut off")
	// ErrMalformed: no metadata at all.
	ErrMalformed = errors.New("malformed")
	// ErrFloor: a version that no machine may go down to.
	ErrFloor = errors.New("below the floor")
	// ErrUnknown: the signed list of files does not have it.
	ErrUnknown = errors.New("not in this release directory")
	// ErrNotRefreshed: asked before the first Refresh that went well.
	ErrNotRefreshed = errors.New("the release directory has not been read yet")
)

// Options are for Open.
type Options struct {
	// Dir is /var/lib/cairn/upgrade; it is made if it is missing.
	Dir string
	// Anchor is the path of the trusted root.json. Default: release.AnchorPath.
	Anchor string
	// Source is the release directory.
	Source source.Source
	// Built is the build time of the running release.
	Built time.Time
	// Clock returns the time, and whether a server has set it since the machine started.
	Clock func() (now time.Time, synchronized bool)
	// Log gets what is thrown away. Default: nowhere.
	Log *slog.Logger
}

// Client knows what to believe of one release directory. It is safe for concurrent use.
type Client struct {
	source source.Source
	cache  cache
	clock  func() (time.Time, bool)
	log    *slog.Logger

	refreshing sync.Mutex // one Refresh at a time; guards root
	root       []byte     // the newest of the chain

	mu     sync.Mutex
	set    *trustedmetadata.TrustedMetadata // of the last Refresh that went well
	newest time.Time
	floor  string
}

// Open reads the anchor and what earlier clients left in o.Dir. It does not use the source.
func Open(o Options) (*Client, error) {
	if o.Anchor == "" {
		o.Anchor = release.AnchorPath
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{source: o.Source, cache: cache{o.Dir, o.Log}, clock: o.Clock, log: o.Log}
	if err := c.cache.prepare(); err != nil {
		return nil, fmt.Errorf("open trust: %w", err)
	}
	anchor, err := os.ReadFile(o.Anchor)
	if err != nil {
		return nil, fmt.Errorf("open trust: anchor: %w", err)
	}
	if c.root, err = c.cache.chain(anchor); err != nil {
		return nil, fmt.Errorf("open trust: anchor %s: %w", o.Anchor, err)
	}
	if c.newest, err = c.cache.newestTime(); err != nil {
		return nil, fmt.Errorf("open trust: %w", err)
	}
	if o.Built.After(c.newest) {
		c.newest = o.Built.UTC()
	}
	if c.floor, err = c.cache.floor(); err != nil {
		return nil, fmt.Errorf("open trust: %w", err)
	}
	return c, nil
}

// Refresh reads the directory's metadata. On an error what an earlier Refresh found stays in use. Only Refresh looks at
// expiry: call it before each decision.
func (c *Client) Refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	r := refresh{Client: c, ctx: ctx}
	if err := r.run(); err != nil {
		return fmt.Errorf("read release directory %s: %w", c.source, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set = r.set
	return nil
}

// Floor is the version below which this machine goes nowhere; "" when it knows none.
func (c *Client) Floor() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}

// NewestTime is the newest time that this machine has seen.
func (c *Client) NewestTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// advance moves the newest time to t, but not beyond what the newest timestamp's expiry allows.
func (c *Client) advance(t, expires time.Time) error {
	if end := expires.Add(time.Second); t.After(end) {
		t = end
	}
	t = t.UTC().Truncate(time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !t.After(c.newest) {
		return nil
	}
	if err := c.cache.write(newestName, []byte(t.Format(time.RFC3339)+"\n")); err != nil {
		return err
	}
	c.newest = t
	return nil
}

// moment is the time that expiry is judged by, and where it comes from.
type moment struct {
	time     time.Time
	by       string
	now      time.Time // by the clock
	measured bool      // a server keeps the clock
}

func (c *Client) moment() moment {
	now, synchronized := c.clock()
	m := moment{now.UTC(), "this machine's clock", now.UTC(), synchronized}
	if newest := c.NewestTime(); newest.After(now) {
		m.time, m.by = newest, "the newest time that this machine has seen"
	}
	return m
}

// expired says that file is, and what to do.
func (m moment) expired(file string, at time.Time) error {
	const form = "2006-01-02 15:04 MST"
	advice := "get a newer release directory"
	if !m.measured {
		advice += ", or correct this machine's clock if it is wrong"
	}
	return fmt.Errorf("%s: %w on %s, and it is %s by %s: %s", file, ErrExpired, at.UTC().Format(form), m.time.Format(form), m.by, advice)
}

// judge finds the kind of go-tuf's err about file.
func judge(file string, err error) error {
	kind, advice := ErrMalformed, "is the address that of a release directory?"
	switch {
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		kind, advice = ErrSignature, "it was made for machines with other keys, or by nobody who may: use the release directory of who made this machine's image"
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}):
		kind, advice = ErrAltered, "copy the release directory anew"
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		kind, advice = ErrExpired, "get a newer release directory"
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		kind, advice = ErrRollback, "is the mirror or the stick out of date? Copy the release directory anew"
	}
	return fmt.Errorf("%s: %w: %s (%w)", file, kind, advice, err)
}
