// Package snapshot keeps copies of the store in files, in the format of
// etcd's own snapshots: a bbolt database with the buckets of etcd 3.6 followed
// by the SHA-256 of it. `etcdutl snapshot restore` accepts every file written
// here, and a snapshot of an etcd can be read here.
//
// The files are written and read by this package's own code for bbolt's page
// format (page.go, tree.go, file.go) rather than by bbolt, for two reasons.
// bbolt reads through a mapping of the file, so that a sector which a worn
// flash card cannot read any more, or a page that points into the void, ends
// the process, on the leader in the middle of its work; here it is an error.
// And a snapshot is written once, in order: that takes one pass, a few pages of
// memory and each byte once. The tests hold the files against bbolt's own check.
//
// A snapshot holds the latest version of each live key with its revisions and
// no history, as an etcd does that was compacted at the snapshot's revision.
package snapshot
