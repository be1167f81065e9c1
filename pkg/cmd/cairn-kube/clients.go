package main

import (
	"fmt"
	"os"

	ctrapp "github.com/containerd/containerd/v2/cmd/ctr/app"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/cairn-os/cairn/pkg/containerd"
	"github.com/cairn-os/cairn/pkg/kubeconfig"
)

// kubectl is upstream's, for the node's administrator unless the environment names another configuration.
func kubectl(args []string) error {
	if os.Getenv("KUBECONFIG") == "" {
		if f, err := os.Open(kubeconfig.Admin); err == nil {
			f.Close()
			if err := os.Setenv("KUBECONFIG", kubeconfig.Admin); err != nil {
				return err
			}
		}
	}
	os.Args = args // upstream looks there for plug-ins and its verbosity
	if _, err := logs.GlogSetter(cmd.GetLogVerbosity(args)); err != nil {
		return fmt.Errorf("verbosity: %w", err)
	}
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		cmdutil.CheckErr(err) // prints the error as kubectl does, and ends the process
	}
	return nil
}

// ctr is upstream's, with the node's own containerd and the namespace of Kubernetes unless the environment says else.
func ctr(args []string) error {
	for name, value := range map[string]string{"CONTAINERD_ADDRESS": containerd.DefaultOptions().Socket, "CONTAINERD_NAMESPACE": "k8s.io"} {
		if os.Getenv(name) != "" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return ctrapp.New().Run(args)
}
