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
//   - The leader of several may abort the process: where its own write fails, or is cancelled by a close, after the others
//     have stored the entry (an assertion of sm_move, by appendLeaderCb, logTruncate, refsDecr). So a leader should hand
//     over, and then be given a second to store what it began, before it is closed.
//   - The flag `errored` that it sets is read nowhere: the next write prepares a segment anew. So a lone member goes on by
//     itself as soon as there is space, within the pauses of the driver.
//   - A member does not start on a full disk: it probes the file system with a file of 4 KiB (damage.IsFull). The process
//     must then end, not try again: dqlite leaves a freed VFS registered with SQLite (src/server.c, dqlite__init, where
//     raft_init fails), and a later start in the same process crashes. So look at the space before a start.
//   - A snapshot of its own that does not fit is given up, and tried again; the log grows meanwhile.
//   - What was acknowledged is kept, what failed is not applied, and files are not harmed. A number of an open segment
//     may be left out.
//   - But a member that is SENT a snapshot on a full disk is harmed. It empties its log in memory first
//     (replication.c, replicationInstallSnapshot), and when the snapshot cannot be written it does not take that back
//     (installSnapshotCb): it then takes entries behind a snapshot that it does not have, acknowledges them, never applies
//     them, and can be elected: such a leader answers nothing, and the cluster stands still. After a restart there is a gap
//     behind its snapshot, with which dqlite does not start, and damage.Inspect says so. A follower falls behind and is
//     sent a snapshot after no more than the entries between two snapshots.
//
// # The rules
//
//   - Full: refuse writes, so that clients get an error that names the cause. The leader of several should hand over.
//   - Exhausted: hand over and stop the member if it is one of several; a lone one refuses writes and stays. Start it when
//     the state is better than Full: damage.Inspect first, as before each start. Then it has not written behind a missing
//     snapshot, since it was stopped while nothing could be written.
//   - A restart while the disk is full does not help.
package space
