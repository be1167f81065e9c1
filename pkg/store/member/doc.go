// Package member runs this machine's dqlite member: its identity, its data
// directory, its connections to other members, and the questions and changes
// that concern the cluster's configuration.
//
// The member listens on an abstract unix socket inside a network namespace
// that holds nothing else, so nothing but this process reaches it: dqlite
// trusts whoever connects, and an abstract socket of the machine's own
// namespace would be open to every pod with hostNetwork. Other members reach
// it through ServeFrom, which carries raft's messages and nothing else.
//
// Members are known by ID. Their raft addresses are names made of it
// ([Name]), which Options.Dial resolves: where a member is may change at any
// time.
package member
