package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flannel-io/flannel/pkg/backend/wireguard"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

const (
	// wireguardKey is the node's private key in the state folder. A node that forgets it is not heard until the others
	// learned of its new one.
	wireguardKey = "wireguard.key"
	// flannelKeyEnv is how flannel's back-end learns where the key is.
	flannelKeyEnv = "WIREGUARD_KEY_FILE"
	// keepalive, in seconds, keeps the way to a node behind NAT open.
	keepalive = 25
)

// wireguardEnd wraps packets in WireGuard's encrypted UDP. There is a device for each family, as in flannel's mode
// "separate".
type wireguardEnd struct {
	keyFile string
	// endpoints is where each node was last said to be, by device and key. Where it is found now is the kernel's
	// business: behind NAT it is elsewhere.
	endpoints map[string]netip.AddrPort
}

func newWireguard(stateDir string) *wireguardEnd {
	return &wireguardEnd{filepath.Join(stateDir, wireguardKey), make(map[string]netip.AddrPort)}
}

func (*wireguardEnd) devices() [2]string { return [2]string{"flannel-wg", "flannel-wg-v6"} }

// ports are flannel's.
func (*wireguardEnd) port(f family) int { return [2]int{51820, 51821}[f] }

// overhead: outer IP, UDP 8, and WireGuard's header and tag 32.
func (*wireguardEnd) overhead(outer family) int {
	if outer == ipv6 {
		return 40 + 40
	}
	return 20 + 40
}

func (*wireguardEnd) flannelOverhead() int { return 80 }

// wireguardData is the annotation.
type wireguardData struct {
	PublicKey string
	Port      uint16
}

func (w *wireguardEnd) setUp(ctx context.Context, l *leases, ext external, mtu int) error {
	key, err := ensureWireguardKey(w.keyFile)
	if err != nil {
		return err
	}
	if w.usable(l.share, key) {
		w.announce(l, ext, key)
	} else if err := w.create(ctx, l, ext); err != nil {
		return err
	}
	for f, name := range w.devices() {
		if !l.share[f].IsValid() {
			continue
		}
		if err := w.settle(family(f), name, l); err != nil {
			return err
		}
		if err := setMTU(name, mtu); err != nil {
			return err
		}
	}
	return nil
}

// create lets flannel make the devices. flannel removes them when its context ends, which would cut off the pods whenever
// this process starts anew; so it gets one that never does, and its goroutine stays for the life of the process.
func (w *wireguardEnd) create(ctx context.Context, l *leases, ext external) error {
	if err := os.Setenv(flannelKeyEnv, w.keyFile); err != nil {
		return fmt.Errorf("set %s: %w", flannelKeyEnv, err)
	}
	clear(w.endpoints)
	return register(context.WithoutCancel(ctx), wireguard.New, l, ext)
}

// usable says that the devices are there from before with this key. flannel would make them anew, and the other nodes
// would need up to 15 s to notice that the old encryption keys are gone.
func (w *wireguardEnd) usable(share prefixes, key wgtypes.Key) bool {
	client, err := wgctrl.New()
	if err != nil {
		return false
	}
	defer client.Close()
	for f, name := range w.devices() {
		if !share[f].IsValid() {
			continue
		}
		d, err := client.Device(name)
		if err != nil || d.PrivateKey != key || d.ListenPort != w.port(family(f)) {
			return false
		}
	}
	return true
}

// announce is what flannel's back-end tells l when it makes the devices.
func (w *wireguardEnd) announce(l *leases, ext external, key wgtypes.Key) {
	l.attrs = lease.LeaseAttrs{BackendType: wireguardBackend}
	for f, to := range []*json.RawMessage{&l.attrs.BackendData, &l.attrs.BackendV6Data} {
		if ext.addresses[f].IsValid() {
			// A struct of a string and a number always encodes.
			*to, _ = json.Marshal(wireguardData{key.PublicKey().String(), uint16(w.port(family(f)))})
		}
	}
}

// settle gives the device the share's first address, as the only one, and brings it up.
func (w *wireguardEnd) settle(f family, name string, l *leases) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	own := netip.PrefixFrom(l.share[f].Addr(), l.share[f].Addr().BitLen())
	if f == ipv6 {
		err = ip.EnsureV6AddressOnLink(flannel6(own), l.config.IPv6Network, link)
	} else {
		err = ip.EnsureV4AddressOnLink(flannel4(own), l.config.Network, link)
	}
	if err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func (w *wireguardEnd) apply(peers []peer, networks prefixes, _ external) error {
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("wireguard: %w", err)
	}
	defer client.Close()
	var errs []error
	for f, network := range networks {
		if !network.IsValid() {
			continue
		}
		name := w.devices()[f]
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		d, err := client.Device(name)
		if err != nil {
			return fmt.Errorf("read wireguard device %s: %w", name, err)
		}
		want, err := wireguardPeers(family(f), peers)
		errs = append(errs, err)
		if changes := w.plan(name, d.Peers, want); len(changes) > 0 {
			if err := client.ConfigureDevice(name, wgtypes.Config{Peers: changes}); err != nil {
				errs = append(errs, fmt.Errorf("configure wireguard device %s: %w", name, err))
				clear(w.endpoints)
			}
		}
		errs = append(errs, syncRoutes(family(f), network, []route{{dst: network, link: link.Attrs().Index}}))
	}
	return errors.Join(errs...)
}

// wireguardPeer is another node as a device knows it.
type wireguardPeer struct {
	key      wgtypes.Key
	endpoint netip.AddrPort
	share    netip.Prefix
}

func wireguardPeers(f family, peers []peer) ([]wireguardPeer, error) {
	var all []wireguardPeer
	var errs []error
	for _, p := range peers {
		if !p.share[f].IsValid() {
			continue
		}
		var data wireguardData
		if err := json.Unmarshal([]byte(p.data[f]), &data); err != nil {
			errs = append(errs, fmt.Errorf("node %s: WireGuard annotation %q: %w", p.node, p.data[f], err))
			continue
		}
		key, err := wgtypes.ParseKey(data.PublicKey)
		if err != nil || data.Port == 0 {
			errs = append(errs, fmt.Errorf("node %s: WireGuard annotation %q: needs a key and a port", p.node, p.data[f]))
			continue
		}
		all = append(all, wireguardPeer{key, netip.AddrPortFrom(p.public[f], data.Port), p.share[f]})
	}
	return all, errors.Join(errs...)
}

// plan lists what differs. An endpoint is set when the node said a new one, and not because the kernel found it elsewhere.
func (w *wireguardEnd) plan(device string, have []wgtypes.Peer, want []wireguardPeer) []wgtypes.PeerConfig {
	known := make(map[wgtypes.Key]wgtypes.Peer)
	for _, h := range have {
		known[h.PublicKey] = h
	}
	alive := time.Duration(keepalive) * time.Second
	var changes []wgtypes.PeerConfig
	for _, p := range want {
		is, exists := known[p.key]
		delete(known, p.key)
		name := device + " " + p.key.String()
		moved := !exists || is.Endpoint == nil || w.endpoints[name] != p.endpoint && is.Endpoint.AddrPort() != p.endpoint
		w.endpoints[name] = p.endpoint
		right := exists && !moved && is.PersistentKeepaliveInterval == alive && len(is.AllowedIPs) == 1 &&
			is.AllowedIPs[0].String() == p.share.String()
		if right {
			continue
		}
		c := wgtypes.PeerConfig{
			PublicKey: p.key, PersistentKeepaliveInterval: &alive,
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipNet(p.share)},
		}
		if moved {
			c.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
		}
		changes = append(changes, c)
	}
	for key := range known {
		delete(w.endpoints, device+" "+key.String())
		changes = append(changes, wgtypes.PeerConfig{PublicKey: key, Remove: true})
	}
	return changes
}

// ensureWireguardKey reads the node's private key and makes one when there is none. flannel would as well, but without
// flushing it: an empty file after a power cut would stop it for ever. Here a cut leaves the old state or the new one.
func ensureWireguardKey(file string) (wgtypes.Key, error) {
	data, err := os.ReadFile(file)
	if err == nil {
		if key, err := wgtypes.ParseKey(strings.TrimSpace(string(data))); err == nil {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return wgtypes.Key{}, fmt.Errorf("read WireGuard key: %w", err)
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("make WireGuard key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return wgtypes.Key{}, err
	}
	// No line end: flannel reads the file too, and does not trim.
	if err := atomicfile.Write(file, []byte(key.String()), 0o600); err != nil {
		return wgtypes.Key{}, fmt.Errorf("write WireGuard key: %w", err)
	}
	return key, nil
}
