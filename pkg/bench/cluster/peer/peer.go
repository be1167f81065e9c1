// Package peer is what runs first on a node in namespaces that has vanilla
// Kubernetes instead of Cairn: it sets the network up and keeps the programs
// running, as a distribution's service manager would. It uses Cairn's own
// supervisor, so that both sides of a benchmark are started alike.
package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/supervise"
	"github.com/cairn-os/cairn/pkg/sysctl"
)

const (
	// Program is where the node has this package's main.
	Program = "/usr/bin/peerinit"
	// SpecFile is where it finds its Spec.
	SpecFile = "/run/peer.json"
	// LogDir holds a log of each service. It is in memory, as Cairn's is.
	LogDir = "/run/peer/log"
)

// Spec says what the node is.
type Spec struct {
	Address     netip.Prefix // of eth0
	Gateway     netip.Addr
	Directories []string // to be made, with mode 0700, before the services start
	Services    []supervise.Service
}

// Await is the command line of a one-shot service that ends when url answers
// with status 200.
func Await(url string) []string { return []string{Program, "await", url} }

// Main does what args, those after the program's name, ask for.
func Main(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "await" {
		return await(ctx, args[1])
	}
	return run(ctx)
}

// run is the node's life.
func run(ctx context.Context) error {
	data, err := os.ReadFile(SpecFile)
	if err != nil {
		return err
	}
	var s Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: %w", SpecFile, err)
	}
	if err := s.setUp(); err != nil {
		return err
	}
	r, err := reaper.New()
	if err != nil {
		return err
	}
	go r.Serve(ctx)
	supervisor, err := supervise.New(supervise.Options{
		Reaper: r, LogDir: LogDir, NotifyDir: "/run/peer/notify",
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"},
		Logf: func(format string, args ...any) { fmt.Printf("peer: "+format+"\n", args...) },
	}, s.Services)
	if err != nil {
		return err
	}
	return supervisor.Run(ctx)
}

func (s Spec) setUp() error {
	for _, dir := range append(s.Directories, LogDir) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// Those without a namespace of their own are the host's and stay as they are, as for Cairn.
	if err := sysctl.SetAll("/proc/sys", sysctl.Defaults()); err != nil {
		fmt.Println("peer: some kernel parameters are the host's and stay as they are")
	}
	return s.connect()
}

// connect gives the node its address and its route.
func (s Spec) connect() error {
	for name, address := range map[string]string{"lo": "127.0.0.1/8", "eth0": s.Address.String()} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set link %s up: %w", name, err)
		}
	}
	err := netlink.RouteAdd(&netlink.Route{Gw: s.Gateway.AsSlice()})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route by %s: %w", s.Gateway, err)
	}
	return nil
}

// await asks url until it answers with status 200.
func await(ctx context.Context, url string) error {
	client := &http.Client{
		Timeout: 2 * time.Second,
		// What it says is not used, so it does not matter who says it.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
