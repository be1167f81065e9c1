// Command init is the smallest node: it tells what it sees, keeps a child
// that ignores signals in a cgroup of its own, and ends as it is told.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "address": // address 10.88.0.2/24
		return setAddress(args[1])
	case "dial": // dial 10.88.0.3:80
		c, err := net.Dial("tcp", args[1])
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, c)
		return err
	case "fail":
		return fmt.Errorf("asked to fail")
	case "child":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	return boot(args)
}

func setAddress(address string) error {
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func boot(args []string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	if err := startChild(); err != nil {
		return err
	}
	if err := os.WriteFile("/written", nil, 0o644); err != nil {
		return err
	}
	boots, err := os.OpenFile("/var/boots", os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprint(boots, "x")
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	go serve(l)
	if err := report(args); err != nil {
		return err
	}
	if <-signals == syscall.SIGUSR1 {
		os.Exit(3)
	}
	fmt.Println("stopped")
	return nil
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		name, _ := os.Hostname()
		fmt.Fprintf(c, "I am %s", name)
		c.Close()
	}
}

// startChild leaves a process in a group below init's own.
func startChild() error {
	dir := "/sys/fs/cgroup/pids/pod"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		dir = "/sys/fs/cgroup/pod"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "child")
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.WriteFile(dir+"/cgroup.procs", fmt.Append(nil, cmd.Process.Pid), 0)
}

func report(args []string) error {
	name, _ := os.Hostname()
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	seed, err := os.ReadFile("/run/cairn/sys/seed/config.yaml")
	if err != nil {
		return err
	}
	boots, err := os.ReadFile("/var/boots")
	if err != nil {
		return err
	}
	var links []string
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		links = append(links, i.Name)
	}
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	var sysLinks []string
	for _, e := range entries {
		sysLinks = append(sysLinks, e.Name())
	}
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return json.NewEncoder(console).Encode(map[string]any{
		"pid": os.Getpid(), "name": name, "args": strings.Join(args, " "), "links": links, "sysLinks": sysLinks,
		"cgroups": strings.Split(strings.TrimSpace(string(cgroups)), "\n"), "seed": string(seed), "boots": len(boots),
	})
}
