package sysctl

// Defaults are the parameters a Kubernetes node needs; the owner's configuration is applied after them.
func Defaults() []Setting {
	return []Setting{
		{Key: "net.ipv4.ip_forward", Value: "1", Why: "pods reach each other and the world through the node"},
		{Key: "net.ipv6.conf.all.forwarding", Value: "1", Why: "the same for IPv6", Optional: true},
		{Key: "net.ipv4.conf.all.rp_filter", Value: "0", Why: "strict reverse path filtering drops overlay traffic"},
		{Key: "net.ipv4.conf.default.rp_filter", Value: "0", Why: "the same for links made later"},
		{Key: "net.bridge.bridge-nf-call-iptables", Value: "1", Why: "service traffic between pods of one bridge passes the firewall", Optional: true},
		{Key: "net.bridge.bridge-nf-call-ip6tables", Value: "1", Why: "the same for IPv6", Optional: true},
		{Key: "net.core.somaxconn", Value: "4096", Why: "backlog of busy services"},
		{Key: "net.ipv4.ip_local_port_range", Value: "32768 60999", Why: "stays clear of node ports (30000-32767)"},
		{Key: "net.netfilter.nf_conntrack_max", Value: "131072", Why: "kube-proxy raises it by cores; a floor for small boards", Optional: true},
		{Key: "fs.inotify.max_user_instances", Value: "8192", Why: "each container's log follower needs one"},
		{Key: "fs.inotify.max_user_watches", Value: "524288", Why: "mounted configuration is watched file by file"},
		{Key: "fs.file-max", Value: "1048576", Why: "small memories get a low default"},
		{Key: "fs.aio-max-nr", Value: "1048576", Why: "the store's raft log uses kernel AIO"},
		{Key: "kernel.pid_max", Value: "4194304", Why: "the default of 32768 is soon reached with many pods"},
		{Key: "kernel.panic", Value: "10", Why: "a node in a shop comes back by itself (kubelet: protectKernelDefaults)"},
		{Key: "kernel.panic_on_oops", Value: "1", Why: "an oops leaves locks held: restart instead (kubelet wants it)"},
		{Key: "kernel.keys.root_maxkeys", Value: "1000000", Why: "each container takes keys (kubelet wants it)"},
		{Key: "kernel.keys.root_maxbytes", Value: "25000000", Why: "25 bytes for each of those keys (kubelet wants it)"},
		{Key: "kernel.kptr_restrict", Value: "1", Why: "kernel addresses are no business of pods"},
		{Key: "kernel.dmesg_restrict", Value: "1", Why: "nor is the kernel log"},
		{Key: "kernel.unprivileged_bpf_disabled", Value: "1", Why: "closes a whole class of kernel bugs to pods", Optional: true},
		{Key: "kernel.yama.ptrace_scope", Value: "1", Why: "a process traces its children only", Optional: true},
		{Key: "vm.overcommit_memory", Value: "1", Why: "pods' limits are the limit, not the sum of reservations (kubelet wants it)"},
		{Key: "vm.panic_on_oom", Value: "0", Why: "out of memory kills one process, by score, not the node (kubelet wants it)"},
		{Key: "vm.max_map_count", Value: "262144", Why: "databases in pods ask for it"},
		{Key: "vm.dirty_background_bytes", Value: "16777216", Why: "cards are slow: write early, so that a power cut loses little"},
		{Key: "vm.dirty_bytes", Value: "67108864", Why: "and no writer waits for a minute's worth of dirty pages"},
	}
}
