// Package join brings a machine into a cluster, from both ends: what the machine does, and what a server answers.
//
// Run is the machine's part: it begins a cluster, joins one, or finds that all is there. Server is the other: it admits
// who proves to know a token's secret, and never sees the secret itself. Tokens, the names of nodes and the cluster's
// settings are objects of the cluster, so that any server answers. Renew is for a machine that belongs to the cluster
// and whose certificates ended while it was off. Follow lets agents and witnesses follow when the cluster's authorities are
// replaced. See DESIGN.md for the protocol and what a power cut leaves.
package join
