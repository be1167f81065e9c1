package nodens

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openWire opens a socket for whole frames on a link.
func openWire(link netlink.Link) (*os.File, error) {
	// Protocol 0 receives nothing until the socket is bound to the link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packets of "+link.Attrs().Name), nil
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// openTap makes a TAP device and plugs it into the bridge. It is gone when the
// file is closed.
func openTap(name, bridge string, mtu int) (*os.File, error) {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", bridge, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make device %s: %w", name, err), unix.Close(fd))
	}
	tap := os.NewFile(uintptr(fd), name)
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = errors.Join(netlink.LinkSetMTU(link, mtu), netlink.LinkSetMaster(link, master), netlink.LinkSetUp(link))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plug device %s in: %w", name, err), tap.Close())
	}
	return tap, nil
}

// ethtoolValue is the structure of <linux/ethtool.h>, and ifreqData the form
// of ifreq that points to one.
type ethtoolValue struct{ cmd, data uint32 }

type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte // the union's largest member is longer
}

// ethtoolSetTxChecksum is ETHTOOL_STXCSUM of <linux/ethtool.h>. Without
// checksums by the card there is no segmentation by it either.
const ethtoolSetTxChecksum = 0x17

// offload turns on or off what the node's card does for its kernel.
func offload(pid int, on bool) error {
	result := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and nobody
		// else ever runs in the node's network.
		runtime.LockOSThread()
		result <- offloadInside(pid, on)
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("set offload of %s: %w", nodeDevice, err)
	}
	return nil
}

func offloadInside(pid int, on bool) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := ethtoolValue{cmd: ethtoolSetTxChecksum}
	if on {
		value.data = 1
	}
	request := ifreqData{data: unsafe.Pointer(&value)}
	copy(request.name[:], nodeDevice)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
