package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
)

// WitnessOrganization is the organization (O) in the certificate of a witness. A certificate without it is a server's.
const WitnessOrganization = "cairn:witness"

// ErrRefused says that the other member does not speak a protocol with this one, though it speaks it with others.
var ErrRefused = errors.New("refused")

// Identity is who the other end of a connection is.
type Identity struct {
	ID      uint64 // as it says itself
	Name    string // of its node, as its certificate says
	Witness bool   // as its certificate says
}

// IdentityOf returns who the other end of a connection is that a Network gave out. It reports false for others.
func IdentityOf(conn net.Conn, id uint64) (Identity, bool) {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return Identity{}, false
	}
	certificates := t.ConnectionState().PeerCertificates
	if len(certificates) == 0 {
		return Identity{}, false
	}
	subject := certificates[0].Subject
	return Identity{ID: id, Name: subject.CommonName, Witness: slices.Contains(subject.Organization, WitnessOrganization)}, true
}

// distrust says why who is not taken for the member that it says it is. A server is: it holds the key of the store's
// authority, so that nothing in its certificate could be held against it. A witness does not, and must not pass as
// another member by that member's ID.
func (n *Network) distrust(who Identity) error {
	if !who.Witness {
		return nil
	}
	if known := n.book.nameOf(who.ID); known != "" && known != who.Name {
		return fmt.Errorf("%s is %q, and the certificate is that of the witness %q", name(who.ID), known, who.Name)
	}
	return nil
}

// refusal says why the dialer from may not speak the connection's protocol with this member.
func (n *Network) refusal(conn *tls.Conn, from uint64) error {
	who, ok := IdentityOf(conn, from)
	if !ok {
		return errors.New("the dialer showed no certificate") // cannot happen: the handshake wants one
	}
	protocol := conn.ConnectionState().NegotiatedProtocol
	if who.Witness && n.servers[protocol] {
		return fmt.Errorf("%s (%q) is a witness, which votes and does no more: %s is for servers", name(who.ID), who.Name, protocol)
	}
	return n.distrust(who)
}

// hold notes a connection of another member for as long as it is served, for Disconnect.
func (n *Network) hold(conn *tls.Conn, from uint64) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[conn] = from
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, conn)
	}
}

// Disconnect closes the connections of a protocol that the member with the id has made to this one. It may make others.
func (n *Network) Disconnect(id uint64, protocol string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for conn, from := range n.held {
		if from == id && conn.ConnectionState().NegotiatedProtocol == protocol {
			_ = conn.NetConn().Close() // Not conn: that could wait for a write that is stuck.
		}
	}
}

// nameOf is the name that a member is known by, or "".
func (b *Book) nameOf(id uint64) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entries[id].Name
}

// MergeFrom takes in what another member tells, as Merge does, and leaves out what that member cannot know better: a name
// for itself that is not its certificate's and, if it is a witness, who others are. New addresses of others are welcome from a
// witness as well: it may be the only one that two members that moved both find.
func (b *Book) MergeFrom(who Identity, entries []Entry) bool {
	b.mu.Lock()
	kept := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool {
		err := b.doubt(who, e)
		if err != nil {
			b.warn(e.ID, "store: what another member tells is not believed", "from", name(who.ID), "certificate", who.Name, "witness", who.Witness, "error", err)
		}
		return err != nil
	})
	b.mu.Unlock()
	return b.Merge(kept)
}

// doubt says why an entry is not believed when who tells it. b.mu is held.
func (b *Book) doubt(who Identity, e Entry) error {
	old, known := b.entries[e.ID]
	switch {
	case e.ID == who.ID && e.Name != who.Name:
		return fmt.Errorf("it names itself %q, and its certificate is for %q", e.Name, who.Name)
	case !who.Witness:
		return nil
	case e.Name == who.Name && !e.Witness:
		return errors.New("it calls itself a server, and its certificate is a witness's")
	case e.ID != who.ID && known && (e.Name != old.Name || e.Witness != old.Witness):
		return fmt.Errorf("it has %s as %q, who is %q", name(e.ID), e.Name, old.Name)
	}
	return nil
}
