package containerd

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// host is what the configuration depends on.
type host struct {
	cgroupV2 bool
	// resource says that the process may lower OOM scores (CAP_SYS_RESOURCE); in containers it may not.
	resource bool
}

func inspectHost() (host, error) {
	var h host
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return h, fmt.Errorf("statfs %s: %w", cgroupRoot, err)
	}
	h.cgroupV2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return h, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		value, ok := strings.CutPrefix(s.Text(), "CapEff:")
		if !ok {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return h, fmt.Errorf("effective capabilities: %w", err)
		}
		h.resource = caps&(1<<unix.CAP_SYS_RESOURCE) != 0
	}
	return h, nil
}

// config is containerd's configuration, version 3. Quoted values are paths and names of our own, none with a character
// that TOML escapes differently from Go.
func (o Options) config(h host) string {
	shims := ""
	if o.ShimCgroup != "" && h.cgroupV2 {
		shims = fmt.Sprintf("\n  ShimCgroup = %q", o.ShimCgroup)
	}
	return fmt.Sprintf(`version = 3
root = %q
state = %q
oom_score = 0

[plugins.'io.containerd.server.v1.grpc']
  address = %q

[plugins.'io.containerd.server.v1.ttrpc']
  address = %q

[plugins.'io.containerd.server.v1.debug']
  address = ''

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  # Of pulled images only what runs is kept, not the compressed layers as well: cards are small.
  discard_unpacked_layers = true

[plugins.'io.containerd.service.v1.diff-service']
  # A layer counts as unpacked once the database says so, which is flushed. Without this its files are not, and a
  # power cut leaves programs of zeros that no restart mends.
  sync_fs = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = %t
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [%q]
  conf_dir = %q
  use_internal_loopback = true

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = 'runc'
  SystemdCgroup = false%s
`, o.Root, o.State, o.Socket, o.Socket+".ttrpc", o.PauseImage, !h.resource, o.CNIBinDir, o.CNIConfDir, shims)
}
