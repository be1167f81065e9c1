// Package peer connects the members of the store with each other: mutually
// authenticated TLS over one TCP port, whose ALPN says which protocol a
// connection carries.
//
// Trust is one CA for the store: who holds a certificate of it, for client and
// server and with the DNS name [ServerName], is a member, whatever its address.
// The certificate's common name is the name of the member's node. Servers do not
// have to be protected from each other, since each holds the CA's key: the ID
// that a server tells of itself is believed. A witness does not hold it. Its
// certificate says what it is, by [WitnessOrganization]; what only servers may
// speak is refused to it ([Network.HandleServers]), and so are the ID of a member
// that is known by another name and, in [Book.MergeFrom], what it tells of others.
// The ID that opened a connection is also the one that raft's greeting on it must
// have (member.Member.ServeFrom), so that a witness cannot pass as the leader there.
// Servers' names are not held against them: one that was renamed has its new
// certificate before the others have heard of the new name, and raft must go on.
// That is no wall within raft itself: a witness votes and holds the log, so one
// in bad hands can disturb the store and read what the store's clients did not
// encrypt.
//
// A member is found by its ID, not by its address. After the TLS handshake the
// dialer says whom it wants and who it is, and the acceptor answers who it is:
//
//	dialer:   target ID, own ID     8 bytes each, big endian; target 0: whoever you are
//	acceptor: status, own ID        1 and 8 bytes; any status but 0 ends the connection
//
// so an address that went over to another member is noticed. The [Book] holds
// the addresses by ID; they are hints, spread by the members among themselves.
package peer
