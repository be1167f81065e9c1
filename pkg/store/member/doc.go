// Package member runs this machine's dqlite member: its identity, its data
// directory and its connections.
//
// The member listens on an abstract unix socket inside a network namespace
// that holds nothing else, so nothing but this process reaches it: dqlite
// trusts whoever connects, and an abstract socket of the machine's own
// namespace would be open to every pod with hostNetwork.
package member
