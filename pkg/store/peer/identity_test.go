package peer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// serversOnly is a protocol of the tests that witnesses may not speak.
const serversOnly = "test-servers/1"

func startBoth(t *testing.T, id uint64, c peer.Credentials) (*peer.Network, *logs) {
	t.Helper()
	l := &logs{}
	n, err := peer.Listen(t.Context(), peer.Config{ID: id, Listen: "127.0.0.1:0", Credentials: c, Logger: slog.New(slog.NewTextHandler(l, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	n.Handle(protocol, echo)
	n.HandleServers(serversOnly, echo)
	n.Start()
	return n, l
}

func issueTo(t *testing.T, ca *peertest.CA, name string, o ...peertest.Option) peer.Credentials {
	t.Helper()
	c, err := ca.Issue(t.TempDir(), name, o...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func entry(id uint64, name string, n *peer.Network) peer.Entry {
	return peer.Entry{ID: id, Name: name, Addresses: []string{n.Addr().String()}, Sequence: 1}
}

// TestWitnessRefused: a witness does not speak what is for servers, and at once what is not.
func TestWitnessRefused(t *testing.T) {
	ca := newCA(t)
	server, log := startBoth(t, 1, issueTo(t, ca, "s"))
	witness, _ := startBoth(t, 2, issueTo(t, ca, "w", peertest.Witness()))
	witness.Book().Merge([]peer.Entry{entry(1, "s", server)})
	if _, err := witness.Dial(t.Context(), 1, serversOnly); !errors.Is(err, peer.ErrRefused) || !strings.Contains(err.Error(), "log says why") {
		t.Errorf("the witness dials what is for servers: %v; want %v", err, peer.ErrRefused)
	}
	log.await(t, "is a witness, which votes and does no more")
	talk(t, dial(t, witness, 1), 2)

	other, _ := startBoth(t, 3, issueTo(t, ca, "o"))
	conn, _, err := other.DialAddress(t.Context(), server.Addr().String(), serversOnly)
	if err != nil {
		t.Fatalf("a server dials: %v", err)
	}
	defer conn.Close()
	talk(t, conn, 3)
	// A server may speak it to a witness, which leads for a moment now and then.
	conn, id, err := other.DialAddress(t.Context(), witness.Addr().String(), serversOnly)
	if err != nil {
		t.Fatalf("a server dials a witness: %v", err)
	}
	defer conn.Close()
	if who, ok := peer.IdentityOf(conn, id); !ok || who != (peer.Identity{ID: 2, Name: "w", Witness: true}) {
		t.Errorf("IdentityOf = %+v, %v", who, ok)
	}
}

// TestWitnessAsAnother: a witness that tells the ID of another member is refused, whoever dials.
func TestWitnessAsAnother(t *testing.T) {
	ca := newCA(t)
	server, log := startBoth(t, 1, issueTo(t, ca, "s"))
	posing, _ := startBoth(t, 3, issueTo(t, ca, "w", peertest.Witness()))
	server.Book().Merge([]peer.Entry{entry(3, "victim", posing)})
	if _, err := server.Dial(t.Context(), 3, protocol); err == nil || !strings.Contains(err.Error(), `the certificate is that of the witness "w"`) {
		t.Errorf("dialing: %v; want that the certificate is another's", err)
	}
	if _, _, err := posing.DialAddress(t.Context(), server.Addr().String(), protocol); !errors.Is(err, peer.ErrRefused) {
		t.Errorf("dialed: %v; want %v", err, peer.ErrRefused)
	}
	log.await(t, `is \"victim\", and the certificate is that of the witness \"w\"`)
	// Servers are who they say: a machine's name may have changed.
	renamed, _ := startBoth(t, 4, issueTo(t, ca, "new"))
	server.Book().Merge([]peer.Entry{entry(4, "old", renamed)})
	talk(t, dial(t, server, 4), 1)
}

func TestMergeFrom(t *testing.T) {
	const at = "10.0.0.1:2380"
	entry := func(id uint64, name string, sequence uint64, witness bool) peer.Entry {
		return peer.Entry{ID: id, Name: name, Addresses: []string{at}, Sequence: sequence, Witness: witness}
	}
	server, witness := peer.Identity{ID: 2, Name: "b"}, peer.Identity{ID: 3, Name: "w", Witness: true}
	known := []peer.Entry{entry(2, "b", 1, false), entry(3, "w", 1, true)}
	for _, tt := range []struct {
		name string
		who  peer.Identity
		told peer.Entry
		want bool
	}{
		{"a server of itself", server, entry(2, "b", 2, false), true},
		{"a server of itself, by another's name", server, entry(2, "c", 2, false), false},
		{"a server of another", server, entry(3, "w2", 2, true), true},
		{"a witness of itself", witness, entry(3, "w", 2, true), true},
		{"a witness of itself, as a server", witness, entry(3, "w", 2, false), false},
		{"a witness of itself, by another's name", witness, entry(3, "b", 2, true), false},
		{"a witness of a server's new address", witness, entry(2, "b", 2, false), true},
		{"a witness of a server, as another", witness, entry(2, "c", 2, false), false},
		{"a witness of a server, as itself", witness, entry(2, "w", 2, true), false},
		{"a witness of a server, as a witness", witness, entry(2, "b", 2, true), false},
		{"a witness of a new member", witness, entry(4, "d", 1, false), true},
		{"a witness of a new member that is itself as a server", witness, entry(4, "w", 1, false), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, _ := startBoth(t, 1, issueTo(t, newCA(t), "a"))
			n.Book().Merge(known)
			before := n.Book().All()
			told := []peer.Entry{tt.told}
			if got := n.Book().MergeFrom(tt.who, told); got != tt.want {
				t.Errorf("MergeFrom = %v; want %v", got, tt.want)
			}
			if diff := cmp.Diff(before, n.Book().All()); (diff != "") != tt.want {
				t.Errorf("the book: %s", diff)
			}
			if diff := cmp.Diff([]peer.Entry{tt.told}, told); diff != "" {
				t.Errorf("what was told changed: %s", diff)
			}
		})
	}
}

// TestDisconnect ends one member's connections of one protocol.
func TestDisconnect(t *testing.T) {
	ca := newCA(t)
	server, _ := startBoth(t, 1, issueTo(t, ca, "a"))
	open := func(id uint64, protocol string) net.Conn {
		t.Helper()
		n, _ := startBoth(t, id, issueTo(t, ca, "b"))
		conn, _, err := n.DialAddress(context.Background(), server.Addr().String(), protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		talk(t, conn, id)
		return conn
	}
	closed, other, another := open(2, serversOnly), open(2, protocol), open(3, serversOnly)
	server.Disconnect(2, serversOnly)
	closed.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(closed); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is open still")
	}
	talk(t, other, 2)
	talk(t, another, 3)
}
