package cluster

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// ownInterval is how often a member looks whether its own addresses changed. It is a look at the kernel's list.
	ownInterval = 3 * time.Second
	// seekInterval is how often a member that knows no leader looks for the others where they may be.
	seekInterval = 5 * time.Second
)

// places are the addresses at which members may be, apart from the address book.
func (n *Node) places() []string {
	all := slices.Clone(n.config.Join)
	if n.config.Peers != nil {
		all = append(all, n.config.Peers()...)
	}
	var once []string
	for _, address := range all {
		if !slices.Contains(once, address) {
			once = append(once, address)
		}
	}
	return once
}

// followOwn tells the others at once when this member's own addresses change, until ctx ends.
func (n *Node) followOwn(ctx context.Context) {
	own := n.config.Network.Own
	if own == nil {
		return
	}
	ticker := time.NewTicker(ownInterval)
	defer ticker.Stop()
	told := n.entries()[n.member.ID()].Addresses
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, err := own()
		if err != nil || slices.Equal(now, told) {
			continue // Without an address there is nothing to tell: see announce.
		}
		told = now
		select {
		case n.news <- struct{}{}:
		default:
		}
	}
}

// seek looks for the other members wherever they may be, while this one knows no leader: after a power cut every
// machine may have another address, and no address book is right. One that answers is a member of this store, for it
// has a certificate of its authority; addresses are exchanged with it, and nothing else.
func (n *Node) seek(ctx context.Context) {
	ticker := time.NewTicker(seekInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		n.mu.Lock()
		idle := n.current.leader != 0 || n.removed || n.joining != nil
		n.mu.Unlock()
		if idle {
			continue
		}
		entries := n.network.Book().All()
		var wg sync.WaitGroup
		for _, address := range n.places() {
			wg.Go(func() {
				n.exchange(ctx, entries, func(ctx context.Context) (net.Conn, uint64, error) {
					return n.network.DialAddress(ctx, address, protocolMember)
				})
			})
		}
		wg.Wait()
	}
}
