package nodens

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// freezeTimeout bounds how long a process may take to stop; one that waits for
// a disk stops when it has what it waits for.
const freezeTimeout = 10 * time.Second

// Pause stops all processes of the node where they are, as a hypervisor that
// has no time for its guest. Its kernel goes on: connections to it open and
// hang. Nothing is visible to the processes but the clock.
func (n *Node) Pause() error { return n.freeze(true) }

// Resume lets the processes of a paused node go on.
func (n *Node) Resume() error { return n.freeze(false) }

func (n *Node) freeze(on bool) error {
	select {
	case <-n.done:
		return fmt.Errorf("freeze node %s: it has ended", n.cfg.Name)
	default:
	}
	f, err := n.cgroups.freezer()
	if err != nil {
		return fmt.Errorf("freeze node %s: %w", n.cfg.Name, err)
	}
	if err := f.set(on); err != nil {
		return fmt.Errorf("freeze node %s: %w", n.cfg.Name, err)
	}
	return nil
}

// freezer is the part of a cgroup that stops its processes.
type freezer struct {
	control  string // the file to write to
	on, off  string
	state    string // the file that tells
	isFrozen string // the line in it
}

var errNoFreezer = errors.New("this machine's cgroups cannot stop processes")

// freezer finds the node's. That of cgroup v2 is the better one, for what it
// holds can be killed; machines with both have it beside the old one.
func (c cgroups) freezer() (freezer, error) {
	for _, h := range c {
		if control := filepath.Join(h.Dir, "cgroup.freeze"); h.Type == "cgroup2" && exists(control) {
			return freezer{control: control, on: "1", off: "0", state: filepath.Join(h.Dir, "cgroup.events"), isFrozen: "frozen 1"}, nil
		}
	}
	for _, h := range c {
		if control := filepath.Join(h.Dir, "freezer.state"); exists(control) {
			return freezer{control: control, on: "FROZEN", off: "THAWED", state: control, isFrozen: "FROZEN"}, nil
		}
	}
	return freezer{}, errNoFreezer
}

// set writes the wish and waits until it has come true.
func (f freezer) set(on bool) error {
	value := f.off
	if on {
		value = f.on
	}
	if err := os.WriteFile(f.control, []byte(value), 0); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(freezeTimeout)
	for {
		state, err := os.ReadFile(f.state)
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(strings.TrimSpace(string(state)), "\n"), f.isFrozen) == on {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("%s still says %q", f.state, state)
		case <-tick.C:
		}
	}
}

// thaw lets go on whatever a node left stopped: the frozen processes of cgroup
// v1 do not even die. It is no error that there is nothing to do.
func (c cgroups) thaw() error {
	f, err := c.freezer()
	if err != nil {
		return nil // then nothing was ever stopped
	}
	if err := os.WriteFile(f.control, []byte(f.off), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !isGone(err) {
		return fmt.Errorf("let processes go on: %w", err)
	}
	return nil
}
