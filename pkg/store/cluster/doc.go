// Package cluster is a node of the store: it runs the member, follows
// leadership and serves Kubernetes' state on a unix socket, whoever leads.
//
// On the leader it opens a Backend and serves it. On every other node it
// carries the connections of the local apiserver to the leader. Why only one
// Backend is active, and what makes its answers current, is written in the
// DESIGN.md of pkg/store.
package cluster
