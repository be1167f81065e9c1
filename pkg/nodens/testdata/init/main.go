// Command init is the smallest node: it tells what it sees, keeps a child
// that ignores signals in a cgroup of its own, and ends as it is told.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
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
		c, err := net.DialTimeout("tcp", args[1], time.Second)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, c)
		return err
	case "carrier":
		carrier, err := os.ReadFile("/sys/class/net/eth0/carrier")
		if err != nil {
			return err
		}
		fmt.Print(strings.TrimSpace(string(carrier)))
		return nil
	case "ping": // ping 10.88.0.3 20
		return ping(args[1], args[2])
	case "pour": // pour 10.88.0.1:4000 1000000
		return pour(args[1], args[2])
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
	if addr.IP.To4() == nil {
		addr.Flags = syscall.IFA_F_NODAD
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

// ping sends count echo requests, 20 ms apart, and prints the round trips of
// those that came back within two seconds, in milliseconds.
func ping(address, count string) error {
	to, err := net.ResolveIPAddr("ip4", address)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return err
	}
	sent := make([]time.Time, n)
	go func() {
		for i := range sent {
			sent[i] = time.Now()
			c.WriteTo(echo(uint16(i)), to)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	c.SetReadDeadline(time.Now().Add(time.Duration(n)*20*time.Millisecond + 2*time.Second))
	trips := map[int]float64{}
	buffer := make([]byte, 1500)
	for len(trips) < n {
		k, _, err := c.ReadFrom(buffer)
		if err != nil {
			break
		}
		if i := int(binary.BigEndian.Uint16(buffer[6:])); k >= 8 && buffer[0] == 0 && i < n {
			trips[i] = float64(time.Since(sent[i]).Microseconds()) / 1000
		}
	}
	return json.NewEncoder(os.Stdout).Encode(slices.Collect(maps.Values(trips)))
}

// echo is an ICMP echo request.
func echo(sequence uint16) []byte {
	p := []byte{8, 0, 0, 0, 0xca, 0x12, 0, 0}
	binary.BigEndian.PutUint16(p[6:], sequence)
	sum := uint32(8<<8) + 0xca12 + uint32(sequence)
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum+sum>>16))
	return p
}

// pour sends that many bytes that are not all the same.
func pour(address, bytes string) error {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.CopyN(c, rand.New(rand.NewSource(1)), n)
	return err
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
