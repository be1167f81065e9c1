// Package config reads the cloud-config document, the one file that says what a machine shall be.
//
// The document is k3OS's with "cairn:" in the place of "k3os:"; either name is accepted. It is strict: an unknown key, a
// wrong type, a duplicate, a second document or a bad value is a Problem with file, line and path, all of them are
// reported at once, and a document with problems yields no Config at all. See DESIGN.md.
package config

// Config is a whole document. Field tags: "check" and "keys" name the check of values and of a map's keys (checks.go),
// "secret" keeps the value out of messages, "k3os" accepts k3OS's other spellings of the key, and "whole" makes Merge
// replace the value of a map entry instead of merging it.
type Config struct {
	// Hostname is also the name of the Kubernetes node. Empty: the machine names itself.
	Hostname string `yaml:"hostname,omitempty" k3os:"" check:"hostname"`
	// SSHAuthorizedKeys are lines of authorized_keys(5) for root. Secret, for some paste their private key.
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty" k3os:"" check:"sshKey" secret:""`
	// WriteFiles are written at every boot, in order.
	WriteFiles []File `yaml:"write_files,omitempty" k3os:""`
	// RunCmd are given to sh -c, in order, once the network is up.
	RunCmd []string `yaml:"run_cmd,omitempty" k3os:"" check:"command" secret:""`
	Cairn  Cairn    `yaml:"cairn,omitempty"`
}

// File is one entry of write_files.
type File struct {
	Path    string `yaml:"path,omitempty" k3os:"" check:"path"`
	Content string `yaml:"content,omitempty" k3os:"" secret:""`
	// Encoding of Content: "", b64, base64, gz, gzip, or the two joined as gz+b64; see Data.
	Encoding string `yaml:"encoding,omitempty" k3os:"" check:"encoding"`
	// Owner is user or user:group, by name or number. Empty: root:root.
	Owner string `yaml:"owner,omitempty" k3os:"" check:"owner"`
	// Permissions are octal digits. Empty: 0644.
	Permissions string `yaml:"permissions,omitempty" k3os:"" check:"permissions"`
}

// Cairn is what k3OS has below "k3os:".
type Cairn struct {
	// Role is server, agent or witness; see EffectiveRole for a machine that is not told.
	Role string `yaml:"role,omitempty" check:"role"`
	// ServerURL is https://HOST:6443 of a server of the cluster to join. Empty: this server begins one.
	ServerURL string `yaml:"server_url,omitempty" k3os:"" check:"serverURL"`
	// Token admits to the cluster: K10<SHA-256 of the authority>::ID:SECRET, or a plain secret, which proves nothing of
	// the server that it is shown to.
	Token string `yaml:"token,omitempty" k3os:"" check:"token" secret:""`
	// K3sArgs are k3s's arguments. They are replaced by the keys that they stand for: no Config that was read has any.
	K3sArgs []string          `yaml:"k3s_args,omitempty" k3os:"" secret:""`
	Cluster Cluster           `yaml:"cluster,omitempty"`
	Labels  map[string]string `yaml:"labels,omitempty" k3os:"" keys:"labelKey" check:"labelValue"`
	// Taints are key=value:Effect or key:Effect.
	Taints  []string          `yaml:"taints,omitempty" k3os:"" check:"taint"`
	Sysctls map[string]string `yaml:"sysctls,omitempty" k3os:"" keys:"sysctl" check:"oneLine"`
	// Modules are kernel modules, each a name and perhaps parameters: "loop max_loop=16".
	Modules []string `yaml:"modules,omitempty" k3os:"" check:"module"`
	// DNSNameservers are used where neither Network nor DHCP names any.
	DNSNameservers []string          `yaml:"dns_nameservers,omitempty" k3os:"" check:"address"`
	NTPServers     []string          `yaml:"ntp_servers,omitempty" k3os:"" check:"host"`
	Environment    map[string]string `yaml:"environment,omitempty" k3os:"" keys:"variable" check:"oneLine" secret:""`
	Network        Network           `yaml:"network,omitempty"`
	// Datastore, when it has an endpoint, is used instead of the machine's own store.
	Datastore Datastore `yaml:"datastore,omitempty"`
	Upgrade   Upgrade   `yaml:"upgrade,omitempty" whole:""`
	Health    Health    `yaml:"health,omitempty"`
}

// Network is how the machine reaches others. Without Interfaces every wired interface asks for DHCP.
type Network struct {
	// Interfaces by kernel name, or by any name when the entry has a mac.
	Interfaces map[string]Interface `yaml:"interfaces,omitempty" keys:"interface" whole:""`
	// Nameservers, when given, are used instead of those of DHCP.
	Nameservers []string `yaml:"nameservers,omitempty" check:"address"`
	Search      []string `yaml:"search,omitempty" check:"domain"`
}

// Interface has an address from DHCP, addresses of its own, or both when its own are IPv6.
type Interface struct {
	// MAC selects the interface by its permanent hardware address instead of by name.
	MAC  string `yaml:"mac,omitempty" check:"mac"`
	DHCP bool   `yaml:"dhcp,omitempty"`
	// Addresses with prefix length: 192.0.2.7/24.
	Addresses []string `yaml:"addresses,omitempty" check:"prefix"`
	// Gateway is the default route's next hop; it must be inside a network of Addresses.
	Gateway string `yaml:"gateway,omitempty" check:"address"`
	// MTU in bytes; 0 leaves it alone.
	MTU    int     `yaml:"mtu,omitempty" check:"mtu"`
	Routes []Route `yaml:"routes,omitempty"`
}

// Route is a route beside the default one.
type Route struct {
	To  string `yaml:"to,omitempty" check:"network"`
	Via string `yaml:"via,omitempty" check:"address"`
	// Metric: the lowest wins among routes to the same network.
	Metric int `yaml:"metric,omitempty" check:"metric"`
}
