// Package store keeps Kubernetes' state: an etcd-compatible key-value store
// with history, watches and leases, whose rows live in a dqlite database.
//
// [Backend] implements kine's server.Backend over one table; [Server] puts
// kine's etcd front before it. The dqlite member itself, which needs cgo, is
// package member below. DESIGN.md holds the schema, the statement of each
// operation and what a crash can leave.
package store
