// Package peer connects the members of the store with each other: mutually
// authenticated TLS over one TCP port, whose ALPN says which protocol a
// connection carries.
//
// Trust is one CA for the store: who holds a certificate of it, for client and
// server and with the DNS name [ServerName], is a member, whatever its address.
// Members do not have to be protected from each other: the ID that a member
// tells of itself is believed.
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
