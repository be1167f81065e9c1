//go:build pins

// Package pins holds dependencies before their importers exist; temporary, deleted before the first landing.
package pins

import (
	_ "github.com/Masterminds/semver/v3"
	_ "github.com/anishathalye/porcupine"
	_ "github.com/beevik/ntp"
	_ "github.com/canonical/go-dqlite/v3"
	_ "github.com/containerd/containerd/v2/client"
	_ "github.com/containerd/go-dmverity/pkg/verity"
	_ "github.com/coreos/go-systemd/v22/daemon"
	_ "github.com/diskfs/go-diskfs"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/google/go-containerregistry/pkg/v1/mutate"
	_ "github.com/google/go-containerregistry/pkg/v1/tarball"
	_ "github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	_ "github.com/k3s-io/kine/pkg/server"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/spf13/cobra"
	_ "github.com/u-root/u-root/pkg/kmodule"
	_ "github.com/vishvananda/netlink"
	_ "go.etcd.io/etcd/client/v3"
	_ "go.etcd.io/etcd/server/v3/embed"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/crypto/ssh"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "k8s.io/api/core/v1"
	_ "k8s.io/apimachinery/pkg/apis/meta/v1"
	_ "k8s.io/client-go/kubernetes"
	_ "k8s.io/kubernetes/pkg/kubelet/apis/config"
	_ "k8s.io/kubernetes/pkg/proxy/apis/config"
)
