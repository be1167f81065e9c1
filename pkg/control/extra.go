package control

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/cairn-os/cairn/pkg/pki"
)

// Names of the components, as their messages and the log have them.
const (
	apiserverName = "kube-apiserver"
	managerName   = "kube-controller-manager"
	schedulerName = "kube-scheduler"
)

// Arguments are an operator's for each component, as "name=value". They come after Cairn's own: the last one counts, or
// is added where upstream takes lists.
type Arguments struct {
	APIServer         []string // of cairn.cluster.kube_apiserver_args
	ControllerManager []string // of cairn.cluster.kube_controller_manager_args
	Scheduler         []string // of cairn.cluster.kube_scheduler_args
}

// of returns the arguments of a component and the key that they are set by.
func (a Arguments) of(component string) (args []string, key string) {
	switch component {
	case apiserverName:
		return a.APIServer, "cairn.cluster.kube_apiserver_args"
	case managerName:
		return a.ControllerManager, "cairn.cluster.kube_controller_manager_args"
	}
	return a.Scheduler, "cairn.cluster.kube_scheduler_args"
}

// names says whether the component has an argument whose name begins so.
func (a Arguments) names(component, prefix string) bool {
	args, _ := a.of(component)
	return slices.ContainsFunc(args, func(arg string) bool {
		name, _ := argument(arg)
		return strings.HasPrefix(name, prefix)
	})
}

// argument splits "name=value" or "name". Kubernetes takes _ for - in names.
func argument(text string) (name, value string) {
	name, value, _ = strings.Cut(text, "=")
	return strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-"), value
}

// wired lists what an operator's argument must not change, with what to use instead. A name with * at its end stands
// for all that begin so. What only one component has is harmless in another's list: upstream refuses it.
func wired(component string) map[string]string {
	const files, lease = "Cairn makes and renews these files", "Cairn's own lease decides; upstream's would end the process when it is lost"
	const port = "there is no port: the apiserver's /metrics tells about the whole process"
	switch component {
	case apiserverName:
		return map[string]string{
			"advertise-address": "use cairn.cluster.node_ip", "bind-address": "use cairn.cluster.node_ip",
			"secure-port": "everything uses 6443", "endpoint-reconciler-type": "servers find each other by it",
			"etcd-servers": "use cairn.datastore", "etcd-cafile": "use cairn.datastore", "etcd-certfile": "use cairn.datastore",
			"etcd-keyfile": "use cairn.datastore", "etcd-prefix": "the data is there", "storage-backend": "use cairn.datastore",
			"service-cluster-ip-range":   "use cairn.cluster.service_cidr",
			"encryption-provider-config": files, "tls-cert-file": files, "tls-private-key-file": files, "client-ca-file": files,
			"service-account-signing-key-file": files, "kubelet-certificate-authority": files, "kubelet-client-*": files,
			"requestheader-*": files, "proxy-client-*": files,
			"authentication-config": "use the oidc arguments", "anonymous-auth": "the balancers ask /readyz without credentials",
			"authorization-mode": "it is Node,RBAC", "authorization-config": "it is Node,RBAC",
			"egress-selector-config-file": "kubelets are reached by it",
		}
	case managerName:
		return map[string]string{
			"kubeconfig": files, "master": files, "authentication-kubeconfig": port, "authorization-kubeconfig": port,
			"leader-elect*": lease, "leader-migration*": lease, "enable-leader-migration": lease,
			"secure-port": port, "bind-address": port,
			"service-account-private-key-file": files, "root-ca-file": files, "cluster-signing-*": files,
			"use-service-account-credentials": "controllers have rights of their own by it",
			"allocate-node-cidrs":             "the pod network needs it",
			"cluster-cidr":                    "use cairn.cluster.pod_cidr", "service-cluster-ip-range": "use cairn.cluster.service_cidr",
		}
	case schedulerName:
		return map[string]string{
			"kubeconfig": files, "master": files, "authentication-kubeconfig": port, "authorization-kubeconfig": port,
			"leader-elect*": lease, "secure-port": port, "bind-address": port,
		}
	}
	return nil
}

// extra returns the operator's arguments for a component as it takes them.
func (o Options) extra(component string) ([]string, error) {
	args, key := o.Arguments.of(component)
	var all []string
	for _, text := range args {
		name, value := argument(text)
		if name == "" {
			return nil, fmt.Errorf("%s: %q: want name=value", key, text)
		}
		for pattern, instead := range wired(component) {
			prefix, open := strings.CutSuffix(pattern, "*")
			if name == pattern || open && strings.HasPrefix(name, prefix) {
				return nil, fmt.Errorf("%s: %s cannot be set: %s", key, name, instead)
			}
		}
		if component == schedulerName && name == "config" {
			value = o.runtime(schedulerConfigFile)
			text = "config=" + value
		}
		if strings.Contains(text, "=") {
			all = append(all, "--"+name+"="+value)
		} else {
			all = append(all, "--"+name)
		}
	}
	return all, nil
}

const schedulerConfigFile = "scheduler.yaml"

// writeSchedulerConfig writes the operator's KubeSchedulerConfiguration again, if there is one, with Cairn's own way to
// the apiserver: upstream takes none from the arguments when there is a file.
func (o Options) writeSchedulerConfig() error {
	for _, text := range o.Arguments.Scheduler {
		name, path := argument(text)
		if name != "config" {
			continue
		}
		_, key := o.Arguments.of(schedulerName)
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: config: %w", key, err)
		}
		var config map[string]any
		if err := yaml.Unmarshal(data, &config); err != nil {
			return fmt.Errorf("%s: config: %s: %w", key, path, err)
		}
		if config == nil {
			return fmt.Errorf("%s: config: %s is empty", key, path)
		}
		connection, _ := config["clientConnection"].(map[string]any)
		if connection == nil {
			connection = make(map[string]any)
		}
		connection["kubeconfig"] = o.componentConfig(pki.Scheduler)
		config["clientConnection"] = connection
		if data, err = yaml.Marshal(config); err != nil {
			return fmt.Errorf("%s: config: %w", key, err)
		}
		return writeRuntime(o.runtime(schedulerConfigFile), string(data))
	}
	return nil
}
