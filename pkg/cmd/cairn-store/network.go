package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/cairn-os/cairn/pkg/config"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/cluster"
	"github.com/cairn-os/cairn/pkg/store/peer"
)

// peerPort is where members of a store reach each other.
const peerPort = "2380"

// files are what joining has left for the store, and what else the machine knows of its cluster.
type files struct {
	membership string
	tls        string          // directory
	server     string          // host:port of the server that the configuration names; "" for none
	own        func() []string // the machine's addresses
}

// servers is the node's list of the cluster's servers.
func (f files) servers() string { return filepath.Join(filepath.Dir(f.membership), "servers.json") }

// begun says, outside the store's directory, that the store of this server was begun.
func (f files) begun() string { return filepath.Join(filepath.Dir(f.tls), "store-begun") }

// connect makes c a member of the store of the machine's cluster. A machine that
// belongs to none keeps its store to itself.
func (f files) connect(c *cluster.Config, own config.Cluster) error {
	m, err := membership.Load(f.membership)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Role == membership.Agent {
		return fmt.Errorf("%s: this machine is an agent, and has no store", f.membership)
	}
	pair := pki.PairFile(f.tls, pki.Store)
	n := &cluster.Network{
		Listen:      ":" + peerPort,
		Credentials: peer.Credentials{CA: pki.CertFile(f.tls, pki.StoreCA), Certificate: pair, Key: pair},
		Own:         func() ([]string, error) { return advertised(own.NodeIPs()) },
	}
	for _, file := range []string{n.Credentials.CA, pair} {
		// Without them a member would have to stay alone, and begin a store of its own.
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("this machine belongs to a cluster, but lacks its certificate: %w; `cairnctl restart join` fetches it", err)
		}
	}
	if !m.Founded {
		if len(m.StorePeers) == 0 {
			return fmt.Errorf("%s names no member of the store to join by; `cairnctl restart join` asks for them", f.membership)
		}
		// Never none: it would begin a store of its own.
		if c.Join = f.candidates(m); len(c.Join) == 0 {
			c.Join = m.StorePeers
		}
	} else {
		c.Begun = f.begun()
	}
	c.Peers = func() []string { return f.candidates(m) }
	c.Network, c.Name, c.Zone = n, m.Node, own.Zone
	c.Witness = m.Role == membership.Witness
	return nil
}

// advertised are the addresses by which other members reach this one: those that
// are configured, or all. On a machine with several networks the default route
// may move to one from which the others do not reach it; they try all at once.
func advertised(configured []netip.Addr) ([]string, error) {
	all, err := pki.Addresses(configured...)
	if err != nil {
		return nil, err
	}
	if len(configured) > 0 {
		all = all[:len(configured)] // They come first.
	}
	return endpoints(all), nil
}

// maxAddresses is how many addresses of one member the others take (pkg/store/peer).
const maxAddresses = 16

func endpoints(all []netip.Addr) []string {
	var texts []string
	for _, a := range all[:min(len(all), maxAddresses)] {
		texts = append(texts, net.JoinHostPort(a.String(), peerPort))
	}
	return texts
}

const (
	tellInterval = 5 * time.Second
	// tellAfter lets a start without trouble pass in silence.
	tellAfter = 3 * time.Second
)

// tellWaiting tells the supervisor, and so the person before the machine, why the
// store does not serve yet, until ctx ends.
func tellWaiting(ctx context.Context, adminSocket string, log *slog.Logger) {
	if adminSocket == "" {
		return
	}
	operator := admin.Open(adminSocket)
	defer operator.Close()
	said := ""
	say := func(message string) {
		said = message
		if _, err := daemon.SdNotify(false, "STATUS="+message); err != nil {
			log.Warn("store: notify status", "error", err)
		}
	}
	for wait := tellAfter; ; wait = tellInterval {
		select {
		case <-ctx.Done():
			if said != "" {
				say("") // it is no longer so
			}
			return
		case <-time.After(wait):
		}
		s, err := operator.Status(ctx)
		if err != nil || s.Message == "" || ctx.Err() != nil {
			continue // it does not answer yet, or has nothing to say
		}
		if message := strings.Join(strings.Fields(s.Phase+": "+s.Message), " "); message != said {
			say(message)
		}
	}
}
