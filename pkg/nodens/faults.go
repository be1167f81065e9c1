package nodens

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Direction is which way packets go, as the node sees it.
type Direction int

const (
	Both     Direction = iota
	Inbound            // to the node
	Outbound           // from the node
)

// Impairment is what a bad line does to packets.
type Impairment struct {
	// Delay holds each packet that goes in the Direction. With Both, a round
	// trip to a sound node takes twice as long, between two impaired nodes four
	// times.
	Delay time.Duration
	// Jitter changes each delay at random, by at most that much in both senses.
	// Packets keep their order.
	Jitter time.Duration
	// Loss is how many of a hundred packets get lost, each way.
	Loss float64
	// Direction says which way is meant.
	Direction Direction
}

// Link is the cable between a node and the bridge, seen from the bridge: the
// node cannot tell its faults from real ones. Faults add up; they end with the
// node. Methods are safe for concurrent use and take effect before they return.
type Link struct {
	node *Node

	mu    sync.Mutex
	ended bool
	rules rules
	relay *relay // while the line is impaired
}

// Cut pulls the cable out: the node's card has no carrier.
func (l *Link) Cut() error { return l.plug(false) }

// Restore plugs the cable in again. Other faults stay.
func (l *Link) Restore() error { return l.plug(true) }

func (l *Link) plug(in bool) error {
	return l.locked("plug", func() error {
		link, err := netlink.LinkByName(l.node.link)
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// Block drops everything that goes between this node and another, broadcasts
// too; Inbound means what comes from the other. It lasts when the other is
// started again.
func (l *Link) Block(other *Node, d Direction) error { return l.block(other, d, true) }

// Unblock undoes Block, for the directions given.
func (l *Link) Unblock(other *Node, d Direction) error { return l.block(other, d, false) }

func (l *Link) block(other *Node, d Direction, on bool) error {
	return l.change("block", func(r *rules) {
		if d != Outbound {
			set(r.from, other.cfg.Name, on)
		}
		if d != Inbound {
			set(r.to, other.cfg.Name, on)
		}
	})
}

// FirewallPort drops what comes to a TCP port of the node's own addresses, as
// a firewall in front of it does: nobody is told.
func (l *Link) FirewallPort(port uint16) error {
	return l.change("firewall", func(r *rules) { set(r.ports, port, true) })
}

// OpenPort undoes FirewallPort.
func (l *Link) OpenPort(port uint16) error {
	return l.change("firewall", func(r *rules) { set(r.ports, port, false) })
}

// Impair makes the line bad, replacing what was said before about the same
// direction. The zero Impairment makes it good.
func (l *Link) Impair(i Impairment) error {
	if i.Delay < 0 || i.Jitter < 0 || i.Loss < 0 || i.Loss > 100 {
		return fmt.Errorf("impair the cable of node %s: %+v makes no sense", l.node.cfg.Name, i)
	}
	return l.locked("impair", func() error { return l.impair(i) })
}

// Repair undoes all faults.
func (l *Link) Repair() error {
	return errors.Join(l.Impair(Impairment{}), l.change("repair", func(r *rules) { *r = rules{} }), l.Restore())
}

func (l *Link) impair(i Impairment) error {
	if l.relay == nil {
		if i == (Impairment{Direction: i.Direction}) {
			return nil
		}
		r, err := startRelay(l.node)
		if err != nil {
			return err
		}
		l.relay = r
	}
	if i.Direction != Outbound {
		l.relay.in.set(i)
	}
	if i.Direction != Inbound {
		l.relay.out.set(i)
	}
	if l.relay.in.sound() && l.relay.out.sound() {
		r := l.relay
		l.relay = nil
		return r.stop()
	}
	return nil
}

// end takes the faults away that are in this process. The caller removes the
// link and its rules.
func (l *Link) end() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.relay == nil {
		return nil
	}
	r := l.relay
	l.relay = nil
	return r.close()
}

// locked does something to the cable of a node that is still there.
func (l *Link) locked(what string, f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := errors.New("the node has ended")
	if !l.ended {
		err = f()
	}
	if err != nil {
		return fmt.Errorf("%s the cable of node %s: %w", what, l.node.cfg.Name, err)
	}
	return nil
}

// change edits the rules and hands them to the kernel, all or none.
func (l *Link) change(what string, edit func(*rules)) error {
	return l.locked(what, func() error {
		next := l.rules.clone()
		edit(&next)
		if err := nft(next.script(&l.node.cfg)); err != nil {
			return err
		}
		l.rules = next
		return nil
	})
}

func set[K comparable](m map[K]bool, key K, on bool) {
	if on {
		m[key] = true
	} else {
		delete(m, key)
	}
}

// rules are what the bridge does not carry to and from one node.
type rules struct {
	from, to map[string]bool // names of other nodes
	ports    map[uint16]bool // of TCP, inbound
}

func (r rules) clone() rules {
	next := rules{from: map[string]bool{}, to: map[string]bool{}, ports: map[uint16]bool{}}
	maps.Copy(next.from, r.from)
	maps.Copy(next.to, r.to)
	maps.Copy(next.ports, r.ports)
	return next
}

// tableName names the node's tables of rules.
func tableName(node string) string { return strings.ReplaceAll(linkName(node), "-", "_") }

// ends spells the bridge's ends of a node's cable for nft: the one of every
// day, and the one while the line is impaired.
func ends(node string) string { return fmt.Sprintf("{ %q, %q }", linkName(node), relayName(node)) }

// script spells the rules for nft, in place of those before.
func (r rules) script(cfg *Config) string {
	var b strings.Builder
	table := "table bridge " + tableName(cfg.Name)
	fmt.Fprintf(&b, "%s\ndelete %s\n", table, table)
	if len(r.from)+len(r.to)+len(r.ports) == 0 {
		return b.String()
	}
	own := ends(cfg.Name)
	var firewall strings.Builder
	for _, port := range slices.Sorted(maps.Keys(r.ports)) {
		fmt.Fprintf(&firewall, "\t\toifname %s ip daddr %s tcp dport %d drop\n", own, cfg.Address.Addr(), port)
		if cfg.Address6.IsValid() {
			fmt.Fprintf(&firewall, "\t\toifname %s ip6 daddr %s tcp dport %d drop\n", own, cfg.Address6.Addr(), port)
		}
	}
	fmt.Fprintf(&b, "%s {\n\tchain forward_to {\n\t\ttype filter hook forward priority 0;\n", table)
	for _, other := range slices.Sorted(maps.Keys(r.from)) {
		fmt.Fprintf(&b, "\t\tiifname %s oifname %s drop\n", ends(other), own)
	}
	for _, other := range slices.Sorted(maps.Keys(r.to)) {
		fmt.Fprintf(&b, "\t\tiifname %s oifname %s drop\n", own, ends(other))
	}
	// What comes from other nodes is forwarded, what comes from this machine
	// is output.
	fmt.Fprintf(&b, "%s\t}\n\tchain output_to {\n\t\ttype filter hook output priority 0;\n%s\t}\n}\n", firewall.String(), firewall.String())
	return b.String()
}

// removeRules deletes a node's tables, if there are any.
func removeRules(table string) error {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		// Without the program, or on a kernel that does not know what it asks
		// for, no rule was ever made.
		return nil
	}
	var script strings.Builder
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line) // table bridge cairn_0123abcd
		if len(fields) == 3 && fields[2] == table {
			fmt.Fprintf(&script, "delete table %s %s\n", fields[1], fields[2])
		}
	}
	if script.Len() == 0 {
		return nil
	}
	return nft(script.String())
}

// nft has the kernel take a script, all of it or nothing.
func nft(script string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
