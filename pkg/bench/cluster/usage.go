package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Names of processes that are counted together.
const (
	shimProgram = "containerd-shim"
	shims       = "shims"
	pauses      = "pause" // one for each pod
	inPods      = "pods"  // what the pods run
)

// usage is what processes use, or used up to a moment.
type usage struct {
	anonymous, pss int64 // bytes; proc_pid_smaps(5): of memory that n share, each has an n-th part in its PSS
	cpu            time.Duration
	written        int64 // bytes sent to disks
	count          int
}

func (u usage) plus(v usage) usage {
	return usage{u.anonymous + v.anonymous, u.pss + v.pss, u.cpu + v.cpu, u.written + v.written, u.count + v.count}
}

// account is what the processes of a machine use, by name.
type account map[string]usage

// total is that of all but the pods' own processes.
func (a account) total() usage {
	var sum usage
	for name, u := range a {
		if name != inPods && name != pauses {
			sum = sum.plus(u)
		}
	}
	return sum
}

// since returns a with processor time and written bytes counted from before. Of
// processes that began anew meanwhile it is what they used since.
func (a account) since(before account) account {
	diff := account{}
	for name, u := range a {
		if b := before[name]; b.cpu <= u.cpu && b.written <= u.written {
			u.cpu -= b.cpu
			u.written -= b.written
		}
		diff[name] = u
	}
	return diff
}

// mean is the average over machines.
func mean(all []account) account {
	sum := account{}
	for _, a := range all {
		for name, u := range a {
			sum[name] = sum[name].plus(u)
		}
	}
	n := max(len(all), 1)
	for name, u := range sum {
		sum[name] = usage{u.anonymous / int64(n), u.pss / int64(n), u.cpu / time.Duration(n), u.written / int64(n), u.count}
	}
	return sum
}

// account reads what every process of the machine uses. Processor time holds
// that of children that ended, so none is lost; the bytes that these wrote are.
func (m *machine) account() (account, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	a := account{}
	for _, p := range all {
		name, u, err := m.use(p)
		if ended(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("process %d of %s: %w", p.PID, m.name, err)
		}
		if name != "" {
			a[name] = a[name].plus(u)
		}
	}
	return a, nil
}

// ended reports whether err says that a process is no more.
func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// use reads one process; the name is empty when it is not one of m that counts.
func (m *machine) use(p procfs.Proc) (name string, u usage, err error) {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return "", u, err
	}
	inside, pod := belongs(string(groups), m.name)
	if !inside {
		return "", u, nil
	}
	argv, err := p.CmdLine()
	if err != nil || len(argv) == 0 {
		return "", u, err // a zombie has none
	}
	switch name = m.kind.process(argv); {
	case pod && strings.HasSuffix(argv[0], pauses):
		name = pauses
	case pod:
		name = inPods
	case name == "":
		return "", u, nil
	}
	memory, err := p.ProcSMapsRollup()
	if err != nil {
		return "", u, err
	}
	stat, err := p.Stat()
	if err != nil {
		return "", u, err
	}
	io, err := p.IO()
	if err != nil {
		return "", u, err
	}
	return name, usage{
		anonymous: int64(memory.Anonymous), pss: int64(memory.Pss),
		cpu:     ticks(uint64(stat.UTime) + uint64(stat.STime) + uint64(max(stat.CUTime, 0)) + uint64(max(stat.CSTime, 0))),
		written: int64(io.WriteBytes) - io.CancelledWriteBytes, count: 1,
	}, nil
}

// ticks are of USER_HZ, which is 100 on every architecture of Linux that Go
// knows.
func ticks(n uint64) time.Duration { return time.Duration(n) * (time.Second / 100) }

// belongs reads /proc/PID/cgroup, as this machine sees it: whether a process is
// inside of a node in namespaces, and whether a pod on it has it.
func belongs(groups, node string) (inside, pod bool) {
	for line := range strings.Lines(groups) {
		path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
		_, below, found := strings.Cut(path+"/", "/cairn/"+node+"/")
		inside = inside || found
		pod = pod || found && strings.HasPrefix(below, "kubepods")
	}
	return inside, pod
}

// inUse is what the machine's memory cgroup is charged for, but for the disk
// cache and what else the kernel could take back at once.
func (m *machine) inUse() (int64, error) {
	for _, g := range []struct{ dir, usage string }{
		{"/sys/fs/cgroup/cairn/", "memory.current"},
		{"/sys/fs/cgroup/memory/cairn/", "memory.usage_in_bytes"}, // cgroup v1
	} {
		text, err := os.ReadFile(g.dir + m.name + "/" + g.usage)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		charged, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, err
		}
		stat, err := os.ReadFile(g.dir + m.name + "/memory.stat")
		if err != nil {
			return 0, err
		}
		free, err := reclaimable(string(stat))
		return charged - free, err
	}
	return 0, fmt.Errorf("%s has no memory cgroup", m.name)
}

// reclaimable reads a group's memory.stat. In that of cgroup v1 the sums that
// include the groups below begin with "total_"; it does not tell of slabs.
func reclaimable(stat string) (int64, error) {
	values := map[string]int64{}
	for line := range strings.Lines(stat) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("memory.stat: %q: %w", line, err)
		}
		values[name] = n
	}
	prefix := ""
	if _, ok := values["total_active_file"]; ok {
		prefix = "total_"
	}
	if _, ok := values[prefix+"active_file"]; !ok {
		return 0, errors.New("memory.stat: no active_file")
	}
	return values[prefix+"active_file"] + values[prefix+"inactive_file"] + values["slab_reclaimable"], nil
}
