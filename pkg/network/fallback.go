package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/dhcp"
)

// fallbackAfter leaves a DHCP server, and a switch that starts to forward late, the time that they take.
const fallbackAfter = 10 * time.Second

// fallBack gives one interface the lease it had before, because none has an address: without one neither the control
// plane nor pods start. DHCP goes on beside it, and the first real lease of any interface ends it. It takes no more than
// one interface, since the others' networks may be the same one, and prefers one with a cable. The address may meanwhile
// be another machine's; that is the lesser evil when no server is there to ask.
func (n *Network) fallBack() bool {
	var best *port
	for _, p := range n.ports {
		if p.plan.dhcp && p.configured && p.kept != nil && (best == nil || p.better(best)) {
			best = p
		}
	}
	if best == nil {
		return false
	}
	best.lease, best.fallback = best.kept, true
	n.options.Logger.Warn("no DHCP server answers; using the address of an earlier lease until one does",
		"interface", best.name, "address", best.lease.Address, "carrier", best.carrier)
	if err := best.applyLease(nil, best.lease); err != nil {
		n.options.Logger.Error("cannot apply earlier lease", "interface", best.name, "error", err)
	}
	n.publish()
	n.writeResolvConf()
	return true
}

// better reports whether p is the likelier one to be the machine's network.
func (p *port) better(other *port) bool {
	if p.carrier != other.carrier {
		return p.carrier
	}
	if !p.kept.Obtained.Equal(other.kept.Obtained) {
		return p.kept.Obtained.After(other.kept.Obtained)
	}
	return p.index < other.index
}

// keepExpired keeps the lease of p past its end, because no server answered, unless another interface has an address. It
// reports whether it did.
func (n *Network) keepExpired(p *port) bool {
	if n.options.LeaseDir == "" || p.lease == nil {
		return false
	}
	for _, other := range n.ports {
		if other != p && (other.lease != nil || len(other.plan.addresses) > 0) {
			return false
		}
	}
	if !p.fallback {
		p.fallback = true
		n.options.Logger.Warn("the DHCP lease has ended and no server answers; keeping its address until one does",
			"interface", p.name, "address", p.lease.Address)
		n.publish()
	}
	return true
}

// endFallback withdraws the address of an earlier lease now that an interface has a real one.
func (n *Network) endFallback() {
	for _, p := range n.ports {
		if p.fallback {
			old := p.lease
			p.lease, p.fallback = nil, false
			n.apply(p, old, nil)
		}
	}
}

// saveLease keeps the lease of p for a boot without a server. Renewals that bring nothing new are not written.
func (n *Network) saveLease(p *port) {
	if n.options.LeaseDir == "" || p.kept != nil && bytes.Equal(terms(p.kept), terms(p.lease)) {
		return
	}
	data, err := json.MarshalIndent(p.lease, "", "  ")
	if err == nil {
		err = os.MkdirAll(n.options.LeaseDir, 0o700)
	}
	if err == nil {
		err = atomicfile.Write(n.leasePath(p), append(data, '\n'), 0o600)
	}
	if err != nil {
		n.options.Logger.Error("cannot keep DHCP lease", "interface", p.name, "error", err)
		return
	}
	p.kept = p.lease
}

// terms is what matters of a lease at the next boot.
func terms(l *dhcp.Lease) []byte {
	c := *l
	c.Obtained, c.Renew, c.Rebind, c.Expire = time.Time{}, 0, 0, 0
	data, err := json.Marshal(c)
	if err != nil {
		return nil // equals nothing that can be written
	}
	return data
}

// loadLease reads what saveLease left. A file that makes no sense is as good as none.
func (n *Network) loadLease(p *port) {
	if n.options.LeaseDir == "" || !p.plan.dhcp {
		return
	}
	data, err := os.ReadFile(n.leasePath(p))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var l dhcp.Lease
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err == nil {
		err = plausible(&l)
	}
	if err != nil {
		n.options.Logger.Warn("the kept DHCP lease cannot be used", "interface", p.name, "error", err)
		return
	}
	p.kept = &l
}

// plausible checks what the kernel would be given.
func plausible(l *dhcp.Lease) error {
	if a := l.Address; !a.IsValid() || !a.Addr().Is4() || !a.Addr().IsGlobalUnicast() {
		return fmt.Errorf("address %v is none for a host", a)
	}
	for _, r := range l.Routes {
		if !r.To.IsValid() || !r.To.Addr().Is4() || r.Via.IsValid() && !r.Via.Is4() {
			return fmt.Errorf("route to %v via %v", r.To, r.Via)
		}
	}
	return nil
}

func (n *Network) forgetLease(p *port) {
	p.kept = nil
	if n.options.LeaseDir == "" {
		return
	}
	if err := os.Remove(n.leasePath(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.options.Logger.Error("cannot forget DHCP lease", "interface", p.name, "error", err)
	}
}

func (n *Network) leasePath(p *port) string {
	return filepath.Join(n.options.LeaseDir, p.name+".json")
}
