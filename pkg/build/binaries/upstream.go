package binaries

import (
	"context"
	"path"
	"path/filepath"
	"slices"
)

// etcdModule has etcd's main at its root: the go command names the program by
// the last part before the version.
const etcdModule = "go.etcd.io/etcd/server/v3"

// upstreamPrograms are Kubernetes and what it stands on as their projects
// build them: a program for each.
var upstreamPrograms = []program{
	{"usr/bin/kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"usr/bin/kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"usr/bin/kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"usr/bin/kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"usr/bin/kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
	{"usr/bin/containerd", "github.com/containerd/containerd/v2/cmd/containerd"},
	{"usr/bin/etcd", etcdModule},
}

// Upstream compiles vanilla Kubernetes, containerd and etcd from the modules
// and with the flags of which Build makes a node's programs, to be measured
// beside these. more are further mains, by import path or folder of the source
// tree, that end up in usr/bin. Of o it needs no Archive.
func Upstream(ctx context.Context, o Options, more ...string) (*Set, error) {
	o = o.withDefaults()
	t, err := targetOf(o.Arch)
	if err != nil {
		return nil, err
	}
	versions, err := moduleVersions(ctx, o.Repo)
	if err != nil {
		return nil, err
	}
	programs := slices.Clone(upstreamPrograms)
	for _, pkg := range more {
		programs = append(programs, program{"usr/bin/" + path.Base(pkg), pkg})
	}
	s := &Set{Files: map[string]string{}, Kubernetes: versions[kubernetesModule]}
	b := build{
		repo: o.Repo, dir: filepath.Join(o.Cache.Dir(), "binaries", o.Arch, "upstream"), env: append(t.goEnv(), "CGO_ENABLED=0"),
		ldflags: linkerFlags(o.Version, versions),
		tags:    Tags + " no_zfs", // ZFS needs a module that a node has no use for
	}
	if err := b.run(ctx, "compile: vanilla Kubernetes", programs, s); err != nil {
		return nil, err
	}
	s.Files["usr/bin/etcd"] = filepath.Join(b.dir, path.Base(path.Dir(etcdModule)))
	return s, nil
}
