package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"syscall"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// resume makes sure that a machine which belongs to a cluster has what it needs. The membership stays whatever the
// configuration says now; only a new name makes an agent or a witness join again, because its certificates are in the
// old one.
func (o Options) resume(ctx context.Context, m *membership.Membership, stretch *stretcher) error {
	o.compare(m)
	o.Role = m.Role
	if err := o.checkDatastore(m); err != nil {
		return err
	}
	if err := o.endJoining(); err != nil { // a cut after the membership left it
		return err
	}
	if _, err := ensureIdentityOf(o, m); err != nil {
		return err
	}
	if m.Founded {
		if lost := o.lost(); lost != "" {
			return refuse(CodeConfig, "%s is missing, on which the whole cluster rests: copy it from another server or a backup. "+
				"Without it, \"cairnctl reset\" makes this machine begin anew, without its cluster", lost)
		}
		if err := o.foundedFiles(m); err != nil {
			return err
		}
		return o.rename(m)
	}
	if o.goesOn(m) {
		return nil
	}
	if lacking := o.lacking(m.Role); lacking != "" {
		if o.ServerURL == "" || o.Token == "" {
			return refuse(CodeConfig, "%s is missing: give the machine cairn.server_url and cairn.token of its cluster to get it again", lacking)
		}
		o.Log.Warn("join: again, because a file is missing", "file", lacking)
		return o.join(ctx, stretch)
	}
	if m.Role == membership.Server {
		if err := o.ensurePKI(m); err != nil {
			return err
		}
		return o.rename(m)
	}
	if !o.known(m) {
		return o.joinUnknown(ctx, stretch)
	}
	if m.Node != o.Node {
		return o.joinRenamed(ctx, m, stretch)
	}
	err := o.refresh(ctx, m)
	switch r := new(Refusal); {
	case isRemoved(err):
		return o.joinRemoved(ctx, stretch)
	case errors.As(err, &r) && r.Code == CodeIdentity && o.ServerURL != "" && o.Token != "":
		// It joined by another identity, which a cut kept out of the membership, and bringBack returned the one before.
		return o.joinUnknown(ctx, stretch)
	}
	return err
}

// goesOn reports whether an agent comes up without an identity that can be read, and says so. Its certificates are what it
// works with, and its node renews them by themselves: the identity is needed when they ended or the machine was removed.
// To join again by a token, which may have ended, with servers that may be away, would take down what works.
func (o Options) goesOn(m *membership.Membership) bool {
	_, err := Identity(o.Dir)
	if err == nil || !o.certified(m) {
		return false
	}
	o.Log.Error("join: this node goes on by its certificates, without its identity", "error", err)
	o.Status(fmt.Sprintf("%v: this machine goes on by the certificates that it has. When those have ended, "+
		"it needs cairn.server_url and a cairn.token that is good to join its cluster again", err))
	return true
}

// certified reports whether an agent has all that it needs but the identity, under its name of today: its certificates are
// there and have not ended, and no server said that it was removed.
func (o Options) certified(m *membership.Membership) bool {
	if m == nil || m.Role != membership.Agent || m.Node != o.Node || Removed(o.Dir) || missing(o.authorityFiles(m.Role)) != "" {
		return false
	}
	return !slices.ContainsFunc(ownFiles(m.Role), func(name string) bool {
		leaf, err := loadLeaf(o.path(name))
		return err != nil || !o.clock().Before(leaf.NotAfter)
	})
}

// ensureIdentityOf loads the identity. A server that lost it makes another, for it has the authorities' keys anyway; the
// others need a token to be known by another, so for them that is done on the way to joining again.
func ensureIdentityOf(o Options, m *membership.Membership) (made bool, err error) {
	if m.Role != membership.Server {
		return false, nil
	}
	if _, err := os.Stat(IdentityFile(o.Dir)); err == nil {
		return false, nil
	}
	_, err = ensureIdentity(IdentityFile(o.Dir), o.write)
	return true, err
}

// known reports whether the machine has the identity that it joined with. One that lost it makes another on its way to
// joining again, which a cut or a server that is away can end before the cluster knows it.
func (o Options) known(m *membership.Membership) bool {
	identity, err := Identity(o.Dir)
	return err != nil || m.Identity == "" || m.Identity == identity
}

// joinUnknown joins again with an identity that the cluster does not know. Until that succeeded the old membership is on
// the disk.
func (o Options) joinUnknown(ctx context.Context, stretch *stretcher) error {
	if o.ServerURL == "" || o.Token == "" {
		return refuse(CodeIdentity, "this machine lost the identity by which its cluster knows it: to let it join again, give it cairn.server_url and a cairn.token that is good")
	}
	o.Log.Warn("join: again, because the cluster does not know this machine's identity")
	return o.join(ctx, stretch)
}

// compare logs where the configuration differs from the membership.
func (o Options) compare(m *membership.Membership) {
	if o.Role != m.Role {
		o.Log.Warn("join: the configuration names another role; this machine keeps the one it joined with until it is reset", "role", m.Role, "configured", o.Role)
	}
	if u, err := url.Parse(o.ServerURL); o.ServerURL != "" && (m.Founded || (err == nil && !slices.Contains(m.Servers, hostPort(u)))) {
		o.Log.Warn("join: the configuration names another server; this machine stays in its cluster until it is reset", "configured", o.ServerURL)
	}
	if o.Settings == nil {
		return
	}
	for _, c := range m.Settings.Conflicts(*o.Settings) {
		if c.Key == membership.KeyDatastore {
			continue // see checkDatastore
		}
		o.Log.Warn("join: a setting of the cluster is fixed when it begins; this machine follows the cluster", "key", c.Key, "configured", c.Own, "cluster", c.Cluster)
	}
}

// checkDatastore keeps a server from going on with another datastore than its cluster's. It would not follow the cluster, as
// with other settings, but serve another state under the cluster's name, in which none of the running pods are.
func (o Options) checkDatastore(m *membership.Membership) error {
	if m.Role != membership.Server || o.Settings == nil {
		return nil
	}
	have, want := m.Settings.Datastore, o.Settings.Datastore
	if have == "" || want == "" || have == want {
		return nil
	}
	return refuse(CodeConfig, "%s is %v here, and this server's cluster keeps its state in %v: put the configuration back. "+
		"A cluster does not move to another datastore; \"cairnctl reset\" makes this machine begin anew", membership.KeyDatastore, want, have)
}

// mendIdentity sets a damaged identity aside where the machine can get another. A server makes one by itself, for it has
// the authorities' keys anyway, and so does a machine that belongs to no cluster yet, for which m is nil. The cluster knows
// the others by theirs alone: they need a token to be known by another. A cut after it leaves an identity that was lost.
// An agent that can do without one for now keeps what is there: see goesOn.
func (o Options) mendIdentity(ctx context.Context, m *membership.Membership) error {
	o.bringBack(m)
	if o.certified(m) {
		return nil
	}
	path := IdentityFile(o.Dir)
	err := o.readIdentity(ctx)
	if !errors.Is(err, errDamaged) {
		if errors.Is(err, syscall.EIO) {
			return err
		}
		return nil // what else is wrong with it, whoever needs it says
	}
	again := m != nil && m.Role != membership.Server
	if again && (o.ServerURL == "" || o.Token == "") {
		return refuse(CodeIdentity, "%v, and the cluster knows this machine by it: to let it join again, give it cairn.server_url and a cairn.token that is good", err)
	}
	o.Log.Error("join: this machine gets another identity", "error", err, "kept", asideOf(path))
	if again {
		o.Status(fmt.Sprintf("%v: this machine joins its cluster again", err))
	} else {
		o.Status(fmt.Sprintf("%v: this machine makes another", err))
	}
	return setAside(path)
}

// lacking returns a file that the machine should have and has not, or "".
func (o Options) lacking(role membership.Role) string {
	return missing(append([]string{IdentityFile(o.Dir)}, o.authorityFiles(role)...))
}

// authorityFiles are those that a machine of that role got when it joined.
func (o Options) authorityFiles(role membership.Role) []string {
	var files []string
	for _, f := range filesFor(role) {
		files = append(files, o.path(f.dir, f.name))
	}
	return files
}

// missing returns the first of the files that is not there or empty, or "".
func missing(files []string) string {
	for _, path := range files {
		if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
			return path
		}
	}
	return ""
}

// lost returns a file of a server that began its cluster which nothing can make again, or "". The other authorities came
// with a later release: a server of an earlier one is still to get them.
func (o Options) lost() string {
	files := []string{pki.ServiceAccountKey(o.path(serverTLS)), o.path(serverDir, encryptionName)}
	for _, name := range []string{pki.ServerCA, pki.ClientCA, pki.RequestHeaderCA} {
		files = append(files, pki.PairFile(o.path(serverTLS), name))
	}
	for _, path := range files {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
	return ""
}

// rename follows the machine's name: a server has the keys to sign certificates in the new one.
func (o Options) rename(m *membership.Membership) error {
	if m.Node == o.Node {
		return nil
	}
	if err := checkNodeName(o.Node); err != nil {
		return err
	}
	o.Log.Warn("join: this server has a new name; remove the old node with kubectl", "was", m.Node, "is", o.Node)
	m.Node = o.Node
	return o.save(m)
}

// joinRenamed joins again under the new name. Until that succeeded the old membership is on the disk.
func (o Options) joinRenamed(ctx context.Context, m *membership.Membership, stretch *stretcher) error {
	if o.ServerURL == "" || o.Token == "" {
		return refuse(CodeConfig, "this machine joined as %s and is now called %s: give it the old hostname, or cairn.server_url and cairn.token to join again", m.Node, o.Node)
	}
	o.Log.Warn("join: again, because this machine has a new name", "was", m.Node, "is", o.Node)
	return o.join(ctx, stretch)
}

// renewOptions asks the servers that were known at the time of joining, and the one that the configuration names now.
func (o Options) renewOptions(m *membership.Membership) RenewOptions {
	servers := m.Servers
	if r, err := newRemote(o.ServerURL, o.clock); err == nil && !slices.Contains(servers, r.address) {
		servers = append(slices.Clip(servers), r.address)
	}
	return RenewOptions{
		Role: m.Role, Node: o.Node, Servers: servers, Dir: o.Dir, Floor: o.Floor, Life: o.Life, Log: o.Log, now: o.now, write: o.write,
	}
}
