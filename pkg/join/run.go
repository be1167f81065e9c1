package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// Pauses between tries. What only a person can change is tried again as well: it may be changed at the other end.
const (
	firstPause   = 2 * time.Second
	maxPause     = 10 * time.Second // a server that starts, or a switch, is there soon
	refusalPause = 30 * time.Second
	// longestWait bounds how long a server can make a machine wait.
	longestWait = 5 * time.Minute
)

// Options say what the machine is and which cluster it shall belong to.
type Options struct {
	Role      membership.Role
	Node      string // name; also in certificates
	ServerURL string // empty: begin a cluster
	Token     string
	Addresses []netip.Addr // the machine's, the primary one first; empty while it has none
	SANs      []string     // of a server: further names and addresses of its apiserver
	// Settings are those that the machine's own configuration names; fields may be empty. nil: none.
	Settings *membership.Settings
	Version  string        // of Kubernetes
	Dir      string        // /var/lib/cairn
	Floor    time.Time     // see pki.Options
	Life     time.Duration // see pki.Options

	// ObtainNode gets an agent's kubelet-client and kubelet-server certificates through the CSR API into
	// Dir/node/tls. It proves with bootstrap who it is to the servers, which are host:port and show that they are the cluster's
	// by the server-ca that is there. It may be called again after an error, and keeps certificates that are good.
	ObtainNode func(ctx context.Context, bootstrap tls.Certificate, servers []string, s membership.Settings) error
	// Clock is the machine's, which is set by the cluster's when nobody else set it. nil: it stays as it is.
	Clock Clock
	// Status takes a sentence for the machine's owner: what is waited for, or what to change. nil: nobody.
	Status func(string)
	Log    *slog.Logger // nil: none

	// For tests; nil: the real ones.
	now   func() time.Time
	write writeFile
	pause func(context.Context, time.Duration) error
}

func (o Options) withDefaults() Options {
	if o.Status == nil {
		o.Status = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.write == nil {
		o.write = atomicfile.Write
	}
	if o.pause == nil {
		o.pause = pause
	}
	return o
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// clock is the machine's time, or Floor while its clock is behind that.
func (o Options) clock() time.Time {
	if now := o.now(); now.After(o.Floor) {
		return now
	}
	return o.Floor
}

func (o Options) path(elem ...string) string {
	return filepath.Join(append([]string{o.Dir}, elem...)...)
}
func (o Options) membershipFile() string { return o.path("node", filepath.Base(membership.Path)) }

// Run makes the machine belong to a cluster: it begins one, joins one, or finds that all is there. It tries until that
// succeeds or ctx ends, says by Status what is in the way, and then returns that. A power cut at any instruction leaves a
// machine that the next Run completes, as the same machine: its identity is written first, and its membership last.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	var stretch stretcher
	wait := firstPause
	for clockSet := false; ; {
		err := o.attempt(ctx, &stretch)
		if !clockSet {
			if clockSet, err = o.followClock(ctx, &stretch, err); clockSet {
				continue
			}
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("join: %w", err)
		}
		this := pauseAfter(err, wait)
		wait = min(2*wait, maxPause)
		if IsRefusal(err) {
			wait = firstPause
		}
		o.Log.Warn("join: not yet", "error", err, "again", this)
		what := "cannot join"
		if o.ServerURL == "" && o.Role == membership.Server {
			what = "cannot begin the cluster"
		}
		o.Status(fmt.Sprintf("%s: %v (trying again in %v)", what, err, this.Round(time.Second)))
		if o.pause(ctx, this) != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
}

// pauseAfter is how long to wait after err, when nothing else is known for wait. Machines that were switched on together
// must not go on asking together.
func pauseAfter(err error, wait time.Duration) time.Duration {
	if IsRefusal(err) {
		return refusalPause
	}
	some := rand.N(wait/4 + 1)
	var l *later
	if errors.As(err, &l) && l.after > wait-some {
		return min(l.after+some, longestWait)
	}
	return wait - some
}

// attempt does all that is to be done, once.
func (o Options) attempt(ctx context.Context, stretch *stretcher) error {
	m, err := membership.Load(o.membershipFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return refuse(CodeConfig, "%v: restore the file, or return the machine to its factory state with \"cairnctl reset\"", err)
	}
	if err := o.mendIdentity(ctx, m); err != nil {
		return err
	}
	if m != nil {
		return o.resume(ctx, m, stretch)
	}
	joining, err := o.joining()
	if err != nil {
		return err
	}
	if joining != "" && o.ServerURL == "" {
		return refuse(CodeConfig, "this machine has begun to join the cluster of %s, whose files it has in part, so it does not begin a cluster of its own: "+
			"give it cairn.server_url again, or return it to its factory state with \"cairnctl reset\"", joining)
	}
	legacy, err := o.earlier()
	if err != nil {
		return err
	}
	switch {
	case legacy && joining == "":
		return o.adopt(ctx, stretch)
	case o.ServerURL != "":
		return o.enter(ctx, stretch)
	case o.Role == membership.Server:
		return o.found()
	}
	return refuse(CodeConfig, "a machine with cairn.role %s needs cairn.server_url and cairn.token to join a cluster", o.Role)
}

// earlier reports whether the machine is a first server of a release that knew no memberships. Machines of this release
// have an identity before they have certificates, and an authority for the store that earlier ones had not: a member that
// lost its identity must not begin a cluster beside its own.
func (o Options) earlier() (bool, error) {
	if _, err := os.Stat(pki.PairFile(o.path(serverTLS), pki.StoreCA)); o.ServerURL != "" && err == nil {
		return false, nil
	}
	if _, err := os.Stat(IdentityFile(o.Dir)); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, err := os.Stat(pki.PairFile(o.path(serverTLS), pki.ServerCA))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// adopt gives a server of an earlier release its membership. That is the first thing written, because with an identity
// and no membership it would look as if it had begun to join. The rest is completed as for any founded server.
func (o Options) adopt(ctx context.Context, stretch *stretcher) error {
	m, err := o.foundedMembership()
	if err != nil {
		return err
	}
	o.Log.Info("join: this machine began its cluster with an earlier release")
	if err := o.save(m); err != nil {
		return err
	}
	return o.resume(ctx, m, stretch)
}

// foundedMembership is that of a server which begins a cluster with the configuration as it is.
func (o Options) foundedMembership() (*membership.Membership, error) {
	settings := membership.DefaultSettings()
	if o.Settings != nil {
		settings = o.Settings.Or(settings)
	}
	if err := settings.Validate(); err != nil {
		return nil, refuse(CodeConfig, "%v: correct the configuration", err)
	}
	m := &membership.Membership{Role: membership.Server, Node: o.Node, Founded: true, Settings: settings}
	if err := m.Validate(); err != nil {
		return nil, refuse(CodeConfig, "%v: correct the configuration", err)
	}
	return m, nil
}

// found begins a cluster.
func (o Options) found() error {
	if err := checkNodeName(o.Node); err != nil { // nobody else looks at the first server's
		return err
	}
	m, err := o.foundedMembership()
	if err != nil {
		return err
	}
	if _, err := ensureIdentity(IdentityFile(o.Dir), o.write); err != nil {
		return err
	}
	if err := o.foundedFiles(m); err != nil {
		return err
	}
	if err := o.save(m); err != nil {
		return err
	}
	o.Log.Info("join: cluster begun", "node", o.Node)
	return nil
}

// foundedFiles creates what lacks of a founded server's files.
func (o Options) foundedFiles(m *membership.Membership) error {
	if err := makeDir(o.path(serverTLS)); err != nil {
		return fmt.Errorf("create certificates: %w", err)
	}
	if err := o.ensurePKI(m); err != nil {
		return err
	}
	return pki.EnsureEncryption(o.path(serverDir, encryptionName), o.clock())
}

func (o Options) pki(m *membership.Membership) pki.Options {
	return pki.Options{
		Dir: o.path(serverTLS), Node: o.Node, Addresses: o.Addresses, SANs: o.SANs, ServiceIP: m.Settings.ServiceIP(),
		ClusterDomain: m.Settings.ClusterDomain, Life: o.Life, Joined: !m.Founded, Floor: o.Floor, Now: o.now, Write: o.write,
	}
}

// ensurePKI brings a server's certificates up to date. Without an address, for a pulled cable, the leaves stay as they
// are: control makes those that lack once there is one. The store's has no address in it, and control waits for the store.
func (o Options) ensurePKI(m *membership.Membership) error {
	ensure := pki.Ensure
	if len(o.Addresses) == 0 {
		ensure = func(p pki.Options) ([]string, error) {
			written, err := pki.EnsureAuthorities(p)
			if err != nil {
				return written, err
			}
			store, err := pki.EnsureLeaf(p, pki.Store)
			return append(written, store...), err
		}
	}
	written, err := ensure(o.pki(m))
	if len(written) > 0 {
		o.Log.Info("join: certificates written", "files", written)
	}
	return err
}

// save writes the membership: from then on the machine belongs to the cluster, and is no more on its way.
func (o Options) save(m *membership.Membership) error {
	if identity, err := Identity(o.Dir); err == nil { // an earlier release's first server has none yet
		m.Identity = identity
	}
	data, err := m.Encode()
	if err != nil {
		return err
	}
	if err := makeDir(filepath.Dir(o.membershipFile())); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	if err := o.write(o.membershipFile(), data, 0o600); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	return o.endJoining()
}
