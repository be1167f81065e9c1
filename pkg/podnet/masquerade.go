package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"sigs.k8s.io/knftables"
)

const (
	nftTable = "cairn-podnet"
	nftChain = "outgoing" // not a word of nft
)

// masquerade hides the node's own pods behind the node's address where their packets leave the cluster's pod network.
// Packets between pods keep their addresses, and packets of other nodes' pods are the business of those nodes. What
// kube-proxy masquerades it does in a table of its own: the first of both to choose an address for a connection wins,
// and both choose the same.
//
// Flannel's rules are not used: see DESIGN.md.
func masquerade(ctx context.Context, nft knftables.Interface, share, networks prefixes) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := nft.Run(ctx, masqueradeRules(nft.NewTransaction(), share, networks)); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// openTable asks nft, the program, what it can.
func openTable() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, nftTable)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return nft, nil
}

// masqueradeRules replaces the rules in one transaction: no packet meets half of them.
func masqueradeRules(tx *knftables.Transaction, share, networks prefixes) *knftables.Transaction {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pods leave by the node's address")})
	tx.Add(&knftables.Chain{
		Name: nftChain, Type: knftables.PtrTo(knftables.NATType),
		Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: nftChain})
	for f, own := range share {
		if !own.IsValid() {
			continue
		}
		ip, multicast := "ip", "224.0.0.0/4"
		if family(f) == ipv6 {
			ip, multicast = "ip6", "ff00::/8"
		}
		tx.Add(&knftables.Rule{Chain: nftChain, Rule: knftables.Concat(
			ip, "saddr", own, ip, "daddr", "!= {", networks[f], ",", multicast, "}", "masquerade", "fully-random",
		)})
	}
	return tx
}

// removeMasquerade removes the rules, if there are any. Adding first makes deleting succeed either way; nft's own word for that
// is not in every version.
func removeMasquerade(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	nft, err := openTable()
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// enableForwarding lets the node pass packets on between its interfaces. The system's settings do so at boot already; a
// tool that turned it off must not cut off the pods.
func enableForwarding(networks prefixes) error {
	var errs []error
	for f, file := range [2]string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if networks[f] == (netip.Prefix{}) {
			continue
		}
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("the kernel has no %v", family(f))
		}
		if err == nil && strings.TrimSpace(string(data)) == "0" {
			err = os.WriteFile(file, []byte("1"), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("enable forwarding: %w", err))
		}
	}
	return errors.Join(errs...)
}
