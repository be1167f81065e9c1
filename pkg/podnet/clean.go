package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
)

// allDevices are the devices of every back-end.
func allDevices() []string {
	var all []string
	for _, b := range []backEnd{vxlanEnd{}, &wireguardEnd{}} {
		for _, name := range b.devices() {
			all = append(all, name)
		}
	}
	return all
}

// staleLinks are the devices that b has no use for with these networks.
func staleLinks(b backEnd, networks prefixes) []string {
	var wanted []string
	for f, name := range b.devices() {
		if networks[f].IsValid() {
			wanted = append(wanted, name)
		}
	}
	return slices.DeleteFunc(allDevices(), func(name string) bool { return slices.Contains(wanted, name) })
}

// removeLinks removes those that there are; their addresses, routes and neighbours go with them.
func removeLinks(names []string) error {
	var errs []error
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Clean removes all that this package makes: links, routes, nftables rules, and its files in dirs (Options' CNIConfDir
// and StateDir), the WireGuard key too. Pods on the node lose their network. No Run may be going on. It goes on after an
// error and tells all of them; what is remembered goes last, so that a power cut on the way lets a second call finish.
func Clean(dirs ...string) error {
	var errs []error
	remove := func(name string) {
		for _, dir := range dirs {
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	remove(cniFile) // first: no pod may start by it any more
	for _, dir := range dirs {
		m, err := remembered(dir)
		if err != nil {
			m = memory{} // unreadable: there is nothing to learn from it, and it goes as well
		}
		for _, p := range m.Networks {
			errs = append(errs, syncRoutes(familyOf(p.Addr()), p, nil))
		}
	}
	errs = append(errs, removeLinks(append(allDevices(), bridge)), removeMasquerade(context.Background()))
	remove(wireguardKey)
	if errors.Join(errs...) == nil {
		remove(memoryFile)
	}
	return errors.Join(errs...)
}

// leave removes our network when the owner chose to install another. It looks for our own files first: other networks
// use links of the same names.
func leave(o Options) error {
	m, err := remembered(o.StateDir)
	if err == nil && m.Backend == "" {
		if _, err := os.Stat(filepath.Join(o.CNIConfDir, cniFile)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err := Clean(o.CNIConfDir, o.StateDir); err != nil {
		return fmt.Errorf("remove the former pod network: %w", err)
	}
	o.Log.Info("former pod network removed", "backend", m.Backend)
	return nil
}
