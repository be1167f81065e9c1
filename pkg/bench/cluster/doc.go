// Package cluster measures a cluster of Cairn beside one of vanilla Kubernetes:
// the same version from the same module, etcd, containerd and the rest as the
// separate programs that their projects build, with the flags that kubeadm
// gives them.
//
// Machines of both are nodes in namespaces of this one, with the same root
// tree, on the same bridge and disk, started by the same supervisor. Each has a
// copy of its own of the tree: pages of a program that several machines run
// would be shared, which no real machine's are.
//
// Vanilla is treated generously. It has no pod network beyond its own node
// (two lines of CNI configuration, written once the node has its share), no
// CoreDNS, its certificates are there before it starts, and each program starts
// at the moment when what it needs answers.
package cluster
