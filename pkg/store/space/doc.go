// Package space keeps the store alive on a full disk: it sets space aside before it is needed, and says early enough
// when there is little left.
//
// # What dqlite does on a full disk
//
// Found in its source (src/raft/uv_prepare.c, uv_append.c, uv_writer.c, uv_snapshot.c, replication.c; 1.18.6) and seen
// in this package's tests on ext4 and tmpfs:
//
//   - Segments of 8 MiB are allocated before they are written, and two wait ready. So a full disk is met when a segment is
//     prepared, not when one is written, and up to two segments are still filled before anything fails.
//   - When no segment can be had, the write fails, the entries are taken out of the log in memory, and a leader steps
//     down at once. Clients are told "leader exec failed" or "not leader" (10250): no error says that the disk is full. A
//     lone member elects itself anew at once and fails at the next write; of several, one with space becomes leader. A
//     follower refuses the entries.
//   - The flag `errored` that it sets is read nowhere: the next write prepares a segment anew. So it goes on by itself as
//     soon as there is space, within the pauses of the driver. A member need not be restarted for a full disk, and
//     restarting it while the disk is full is wrong: it does not start, since it probes the file system with a file.
//   - A snapshot that does not fit is given up, and tried again; the log grows meanwhile.
//   - What was acknowledged is kept, what failed is not applied, and files are not harmed. (A number of an open segment
//     may be left out.)
//
// So the rule is: do not restart, do not retry in a hurry; refuse writes while the state is Full, so that clients
// get an error that names the cause instead of a member that loses its leadership again and again.
package space
