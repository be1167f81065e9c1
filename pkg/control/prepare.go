package control

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/tunnel"
)

// authenticationConfig lets requests without credentials see the health endpoints and nothing else.
const authenticationConfig = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// ownAdmin is the configuration of this process's own administrator, which refers to the certificate: clients reread it
// after a renewal. The one that the operator copies holds the certificate itself.
const ownAdmin = "cairn-admin"

// prepare finds the machine's addresses and writes all files that the components read.
func (o *Options) prepare(log *slog.Logger) error {
	var err error
	if o.addresses, err = o.ownAddresses(); err != nil {
		return err
	}
	if err := o.ensureKeys(log); err != nil {
		return err
	}
	if err := o.writeConfigs(); err != nil {
		return err
	}
	return o.writeKubeconfigs()
}

// ensureKeys makes certificates and the key of the Secrets. A server that joined got the key from another one: a key of
// its own would make it write Secrets that the others cannot read.
func (o Options) ensureKeys(log *slog.Logger) error {
	written, err := pki.Ensure(o.pki())
	if err != nil {
		return err
	}
	if len(written) > 0 {
		log.Info("certificates written", "files", written)
	}
	if !o.Joined {
		return pki.EnsureEncryption(o.encryption(), time.Now())
	}
	err = pki.CheckEncryption(o.encryption())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; this server joined a cluster and must have its key: cairnctl reset makes it join again", err)
	}
	return err
}

func (o Options) writeConfigs() error {
	files := map[string]string{"authentication.yaml": authenticationConfig}
	if o.Audit {
		files[auditPolicyFile] = auditPolicy
		if err := os.MkdirAll(o.AuditDir, 0o750); err != nil {
			return fmt.Errorf("create %s: %w", o.AuditDir, err)
		}
	}
	if o.Tunnels {
		files["egress.yaml"] = string(tunnel.EgressConfig(o.egressSocket()))
	}
	for name, text := range files {
		if err := writeRuntime(o.runtime(name), text); err != nil {
			return err
		}
	}
	return o.writeSchedulerConfig()
}

func writeRuntime(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create %s: %w", filepath.Dir(path), err)
	}
	return atomicfile.Write(path, []byte(text), 0o600)
}

func (o Options) writeKubeconfigs() error {
	client := func(name string) kubeconfig.Client {
		return kubeconfig.Client{Server: o.url(), CAFile: o.authority(pki.ServerCA), PairFile: o.pair(name), User: name}
	}
	for name, file := range map[string]string{
		pki.ControllerManager: pki.ControllerManager, pki.Scheduler: pki.Scheduler, pki.Admin: ownAdmin,
	} {
		if err := client(name).WriteReference(o.componentConfig(file)); err != nil {
			return err
		}
	}
	return client(pki.Admin).WriteEmbedded(o.AdminKubeconfig)
}

// ownAddresses returns the machine's addresses. The first is the one to advertise: of the family of the first Service
// network, and one that the configuration names if it names any.
func (o Options) ownAddresses() ([]netip.Addr, error) {
	all, err := pki.Addresses(o.NodeIPs...)
	switch {
	case err != nil && o.listen.IsValid():
		all = slices.Clone(o.NodeIPs)
	case err != nil:
		return nil, err
	}
	v4 := o.Settings.ServiceIP().Is4()
	first := slices.IndexFunc(all, func(a netip.Addr) bool { return a.Is4() == v4 })
	if first < 0 {
		return nil, fmt.Errorf("the cluster's first Service network is %s, and this machine has no address of that family, only %v; set cairn.cluster.node_ip or cairn.network",
			o.Settings.ServiceCIDRs[0], all)
	}
	primary := all[first]
	return append([]netip.Addr{primary}, slices.Delete(all, first, first+1)...), nil
}
