package nodens

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// console is a pseudo terminal: the node's side becomes its /dev/console.
type console struct {
	master, slave *os.File
	out           io.Writer
	in            io.Reader
	copying       sync.WaitGroup
}

func openConsole(out io.Writer, in io.Reader) (*console, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a console: %w", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	slave, err := openSlave(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a console: %w", err), master.Close())
	}
	return &console{master: master, slave: slave, out: out, in: in}, nil
}

func openSlave(master int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// Output as it is written: no carriage returns in logs.
	term, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.Join(err, slave.Close())
	}
	term.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, term); err != nil {
		return nil, errors.Join(err, slave.Close())
	}
	return slave, nil
}

// run copies until the node's last process has closed its side.
func (c *console) run() {
	c.slave.Close() // the node has its own
	c.copying.Go(func() {
		// Reading ends with EIO when nobody has the other side open any more.
		io.Copy(c.out, c.master)
	})
	if c.in != nil {
		// Ends with the reader, which is the caller's, or with the node.
		go io.Copy(c.master, c.in)
	}
}

// close waits for the last output and ends the console.
func (c *console) close() error {
	c.slave.Close()
	c.copying.Wait()
	return c.master.Close()
}
