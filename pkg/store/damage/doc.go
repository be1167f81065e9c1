// Package damage finds damage in a member's directory before dqlite runs on it, and sets damaged directories aside.
//
// dqlite checks its files when it starts, but not for what matters most: it takes any batch that does not match its
// checksum in an open segment for the end of the log, though batches follow, and goes on with the next open segment as
// if nothing were missing; it goes on with an older term and vote when a metadata file is short. A voter that forgot
// what it acknowledged can elect a leader that never had it. So Inspect reads everything as dqlite does, changes
// nothing, and compares what dqlite would load with what must have been stored.
package damage
