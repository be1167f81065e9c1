// Command cairn-kube is all of Kubernetes that a node runs, in one file: the control plane, the node's part, containerd,
// kubectl and ctr. The first argument, or the name it is called by, says which.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

const usage = `usage: cairn-kube COMMAND [ARGUMENT...]

  join        make the machine a member of its cluster
  control     apiserver, controller-manager and scheduler
  node        kubelet, kube-proxy and pod network
  containerd  container runtime
  kubectl     client of the cluster
  ctr         client of the container runtime
`

func main() {
	args := os.Args
	if name := filepath.Base(args[0]); name == "cairn-kube" && len(args) > 1 {
		args = args[1:]
	} else {
		args[0] = name
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch args[0] {
	case "join", "control", "node", "containerd":
		err = runDaemon(log, args[0], args[1:])
	case "kubectl":
		err = kubectl(args)
	case "ctr":
		err = ctr(args)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cairn-kube %s: %v\n", args[0], err)
		os.Exit(1)
	}
}
