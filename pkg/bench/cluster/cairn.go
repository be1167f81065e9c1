package cluster

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
	"github.com/cairn-os/cairn/pkg/runner"
)

// joinSecret is what all machines of a Cairn cluster have in their
// configuration.
const joinSecret = "a-secret-of-the-benchmark-2604"

// cairn is this project.
type cairn struct {
	built *image.Output
	// first is the server by which others join.
	first string
}

func (*cairn) name() string { return "cairn" }

func (*cairn) programs() map[string]string { return nil }

func (k *cairn) prepare(c *cluster) error {
	k.first = c.machines[0].url()
	return nil
}

func (k *cairn) powerOn(ctx context.Context, m *machine) (*power, error) {
	built := *k.built
	built.Tree = m.tree()
	n, err := runner.StartNative(ctx, &built, runner.NativeOptions{
		Name: m.name, Address: m.address, State: m.state(), Config: []byte(k.cloudConfig(m)),
	})
	if err != nil {
		return nil, err
	}
	return &power{pid: n.PID(), console: n.Console(), done: n.Done(), kill: n.Kill}, nil
}

func (k *cairn) cloudConfig(m *machine) string {
	switch {
	case m.role == agent:
		return fmt.Sprintf("cairn: {server_url: %q, token: %s}\n", k.first, joinSecret)
	case m.url() != k.first:
		return fmt.Sprintf("cairn: {role: server, server_url: %q, token: %s}\n", k.first, joinSecret)
	}
	return fmt.Sprintf("cairn: {token: %s}\n", joinSecret)
}

// attend has nothing to do: that is the point.
func (*cairn) attend(context.Context, *machine) error { return nil }

// access waits for the administrator's kubeconfig on the machine.
func (*cairn) access(ctx context.Context, m *machine) (config *rest.Config, err error) {
	err = m.wait(ctx, "the machine has made its kubeconfig", func(context.Context) (bool, error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", m.power.pid, kubeconfig.Admin))
		if err != nil {
			return false, err
		}
		config, err = clientcmd.RESTConfigFromKubeConfig(text)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	config.Host = m.url()
	return config, nil
}

// process names the parts of the multi-call binary by their jobs.
func (*cairn) process(argv []string) string {
	name := path.Base(argv[0])
	switch {
	case name == "cairn-kube" && len(argv) > 1:
		return argv[1]
	case name == "cairn-store":
		return "store"
	case strings.HasPrefix(name, shimProgram):
		return shims
	}
	return name
}
