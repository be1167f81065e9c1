package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cluster is machines of one kind that form a cluster. The first one founds it.
type cluster struct {
	kind     kind
	dir      string
	machines []*machine
	formed   time.Duration // how long all took from power-on to Ready when they started last
}

// newCluster gives machines of the roles their trees, below dir. first is the
// last byte of the first machine's address; names begin with label.
func newCluster(ctx context.Context, k kind, dir, label, tree string, first byte, roles ...role) (*cluster, error) {
	c := &cluster{kind: k, dir: filepath.Join(dir, label+"-"+k.name())}
	if err := os.RemoveAll(c.dir); err != nil {
		return nil, err
	}
	for i, r := range roles {
		m := &machine{
			kind: k, name: fmt.Sprintf("bench-%s-%s-%d", label, k.name(), i+1), role: r,
			address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, first + byte(i)}), 24),
		}
		m.dir = filepath.Join(c.dir, m.name)
		if err := m.install(ctx, tree); err != nil {
			return nil, err
		}
		c.machines = append(c.machines, m)
	}
	return c, k.prepare(c)
}

// of returns the machines of a role.
func (c *cluster) of(r role) (all []*machine) {
	for _, m := range c.machines {
		if m.role == r {
			all = append(all, m)
		}
	}
	return all
}

// form starts all machines at once and waits until their nodes are Ready.
func (c *cluster) form(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	begin, errs := time.Now(), make(chan error, len(c.machines))
	for _, m := range c.machines {
		if err := m.start(ctx); err != nil {
			return err
		}
	}
	for _, m := range c.machines {
		go func() {
			// An agent has no administrator's access: the first server is asked.
			err := c.access(ctx, m)
			if err == nil {
				_, err = m.follow(ctx, "")
			}
			errs <- err
		}()
	}
	var all error
	for range c.machines {
		all = errors.Join(all, <-errs)
	}
	c.formed = time.Since(begin)
	return all
}

// access makes m known how its API is reached.
func (c *cluster) access(ctx context.Context, m *machine) error {
	if m.role == server {
		_, err := m.client(ctx)
		return err
	}
	config, err := c.kind.access(ctx, c.machines[0])
	m.config = config
	return err
}

// end cuts the power of all and takes their disks away.
func (c *cluster) end() error {
	var errs []error
	for _, m := range c.machines {
		errs = append(errs, m.kill())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// accounts reads what all machines use.
func (c *cluster) accounts() (map[*machine]account, error) {
	all := map[*machine]account{}
	for _, m := range c.machines {
		a, err := m.account()
		if err != nil {
			return nil, err
		}
		all[m] = a
	}
	return all, nil
}

// version is the Kubernetes version that the first machine serves.
func (c *cluster) version(ctx context.Context) (string, error) {
	api, err := c.machines[0].client(ctx)
	if err != nil {
		return "", err
	}
	n, err := api.CoreV1().Nodes().Get(ctx, c.machines[0].name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return n.Status.NodeInfo.KubeletVersion, nil
}

// anew powers the machines of a cluster off, takes their disks away and starts
// them again.
func (c *cluster) anew(ctx context.Context) error {
	for _, m := range c.machines {
		if err := errors.Join(m.kill(), m.wipe()); err != nil {
			return err
		}
	}
	if err := c.kind.prepare(c); err != nil {
		return err
	}
	return c.form(ctx)
}
