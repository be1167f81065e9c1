// Package nodes gives programs machines of their own to break: each node has a
// network namespace on a private bridge, a small file system of its own, and
// one process that can be killed, paused, cut off, starved of disk space and
// told another time of day. Nothing of it is visible to, or disturbs, the rest
// of the machine.
//
// It needs root, and nsenter, nft and mkfs.ext4.
package nodes
