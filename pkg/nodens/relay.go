package nodens

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// relay carries a node's packets between its cable and the bridge through this
// process, which delays and loses some. The kernel's own way, netem, is
// missing from many kernels.
//
// The cable leaves the bridge and a TAP device takes its place there. Packets
// from the node are read from the cable by a packet socket, written to the
// TAP, and the other way round. The node sees nothing of the change.
type relay struct {
	node *Node
	wire *os.File // the cable
	tap  *os.File // the bridge
	in   *lane    // to the node
	out  *lane    // from the node

	running sync.WaitGroup
	mu      sync.Mutex
	err     error // why a lane ended by itself
}

// relayName is the TAP device of an impaired node.
func relayName(node string) string {
	h := fnv.New32a()
	h.Write([]byte(node))
	return fmt.Sprintf("cairnt%08x", h.Sum32())
}

// startRelay puts a relay into the node's line.
func startRelay(n *Node) (_ *relay, err error) {
	r := &relay{node: n, in: newLane(), out: newLane()}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop())
		}
	}()
	// Packets that are handed over inside of one machine need no checksum and
	// may be larger than any cable carries. A process must see real ones.
	if err := offload(n.pid, false); err != nil {
		return r, err
	}
	err = withNetworkLock(func() error {
		cable, err := netlink.LinkByName(n.link)
		if err != nil {
			return err
		}
		if err := isolate(n); err != nil {
			return err
		}
		if r.wire, err = openWire(cable); err != nil {
			return fmt.Errorf("read link %s: %w", n.link, err)
		}
		if err := netlink.LinkSetNoMaster(cable); err != nil {
			return fmt.Errorf("unplug link %s: %w", n.link, err)
		}
		r.tap, err = openTap(relayName(n.cfg.Name), n.cfg.Bridge, cable.Attrs().MTU)
		return err
	})
	if err != nil {
		return r, err
	}
	r.carry(r.wire, r.tap, r.out)
	r.carry(r.tap, r.wire, r.in)
	return r, nil
}

// isolate keeps this machine from taking part in what arrives on a cable that
// is on no bridge: the packet socket gets its copy before the rule.
func isolate(n *Node) error {
	sysctl := filepath.Join("/proc/sys/net/ipv6/conf", n.link, "disable_ipv6")
	if exists(sysctl) {
		if err := os.WriteFile(sysctl, []byte("1"), 0); err != nil {
			return err
		}
	}
	return nft(fmt.Sprintf("table netdev %s {\n\tchain arrivals {\n\t\ttype filter hook ingress device %q priority 0;\n\t\tdrop\n\t}\n}\n",
		tableName(n.cfg.Name), n.link))
}

// stop takes the relay out and plugs the cable into the bridge again.
func (r *relay) stop() error {
	err := r.close()
	plug := withNetworkLock(func() error {
		cable, err := netlink.LinkByName(r.node.link)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(r.node.cfg.Bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(cable, bridge)
	})
	table := "table netdev " + tableName(r.node.cfg.Name)
	return errors.Join(err, plug, nft(table+"\ndelete "+table+"\n"), offload(r.node.pid, true))
}

// close ends the lanes; what is under way is lost. The TAP goes with its file.
func (r *relay) close() error {
	for _, f := range []*os.File{r.wire, r.tap} {
		if f != nil {
			f.Close()
		}
	}
	r.running.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// carry moves packets over a lane until one of the files is closed.
func (r *relay) carry(from, to *os.File, l *lane) {
	queue := make(chan packet, queueLength)
	r.running.Go(func() {
		defer close(queue)
		r.failed(l.receive(from, queue))
	})
	r.running.Go(func() { r.failed(l.send(to, queue)) })
}

func (r *relay) failed(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, fmt.Errorf("relay of node %s: %w", r.node.cfg.Name, err))
}

const (
	// queueLength bounds the packets under way: a third of a second at 150
	// Mbit/s. A full line loses packets, as a router does.
	queueLength = 4096
	// maxPacket is more than an Ethernet frame of any size.
	maxPacket = 70 << 10
)

// packet is a frame and when it is due.
type packet struct {
	data []byte
	due  time.Time
}

// lane is one direction of an impaired line.
type lane struct {
	mu   sync.Mutex
	how  Impairment
	last time.Time // when the packet before is due
}

func newLane() *lane { return &lane{} }

func (l *lane) set(i Impairment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i.Direction = Both
	l.how = i
}

func (l *lane) sound() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.how == Impairment{}
}

// fate decides when a packet that comes now is due, or that it is lost.
func (l *lane) fate(now time.Time) (due time.Time, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rand.Float64()*100 < l.how.Loss {
		return now, true
	}
	due = now.Add(l.how.Delay)
	if l.how.Jitter > 0 {
		due = due.Add(time.Duration((2*rand.Float64() - 1) * float64(l.how.Jitter)))
	}
	if due.Before(l.last) {
		due = l.last
	}
	l.last = due
	return due, false
}

// receive reads packets until from is closed.
func (l *lane) receive(from *os.File, queue chan<- packet) error {
	buffer := make([]byte, maxPacket)
	for {
		n, err := from.Read(buffer)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // the cable was pulled; it may come back
		case err != nil:
			return err
		}
		due, lost := l.fate(time.Now())
		if lost {
			continue
		}
		select {
		case queue <- packet{data: append([]byte(nil), buffer[:n]...), due: due}:
		default:
		}
	}
}

// send writes packets when they are due, until the queue or to is closed.
func (l *lane) send(to *os.File, queue <-chan packet) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p := range queue {
		if wait := time.Until(p.due); wait > 0 {
			timer.Reset(wait)
			<-timer.C
		}
		_, err := to.Write(p.data)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EMSGSIZE):
			// A pulled cable, a full queue, an ended node, or a packet from the
			// moment before offload was off: lost, as packets are.
		case err != nil:
			return err
		}
	}
	return nil
}
