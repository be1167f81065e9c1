// Package damage finds damage in a member's directory before dqlite runs on it, and sets damaged directories aside.
//
// dqlite checks its files when it starts, but not for what matters most: it takes any batch that does not match its
// checksum in an open segment for the end of the log, though batches follow, and goes on with the next open segment as
// if nothing were missing; it goes on with an older term and vote when a metadata file is short. A voter that forgot
// what it acknowledged can elect a leader that never had it. So Inspect reads everything as dqlite does, changes
// nothing, and compares what dqlite would load with what must have been stored.
//
// # Use
//
// Before each start of a member: Inspect. If the report is Damaged, a member of a cluster is SetAside and joins anew
// under a new ID; a lone one stops with Refusal. Else Repair, then start. UpdateMark after the start, after
// snapshots or every ten minutes, and after the stop.
//
// # What dqlite does, and what Inspect says
//
// From libdqlite 1.18.6, src/raft/uv*.c, with AutoRecovery off; the tests compare both on damaged directories.
//
//	what is there                                       dqlite                            Inspect
//	a write at the end of the log did not finish        cuts it                           harmless
//	an open segment of zeros or of no length            removes it                        harmless
//	tmp files, snapshot without meta or data            removes them                      harmless
//	first metadata file short or missing, no log        starts as new                     harmless
//	an older snapshot or replaced segment damaged       does not read it                  harmless
//	first write of a segment lacks its begin            refuses                           repairable: removed
//	open segment full but for 8 bytes                   refuses                           repairable: cut
//	truncation cut short: a segment and its begin       refuses, or not                   repairable: the copy is removed
//	closed segment: any bit, any length, missing        refuses                           damaged
//	newest snapshot or its meta: any bit, any length    refuses, but for the frame's end  damaged
//	open segment shortened inside a batch               refuses                           damaged
//	open segment: bit flipped in a stored batch         CUTS the log there                damaged
//	open segment: stored batch bad, later ones follow   CUTS the log there                damaged
//	the same, and a later open segment follows          CUTS, SHIFTS the later entries    damaged
//	last closed segment missing, open ones follow       SHIFTS the later entries          damaged, by mark, terms or snapshot
//	closed segments end before the snapshot             refuses, or FORGETS what followed damaged
//	a metadata file short or missing                    FORGETS term and vote             damaged
//	metadata: version, term or vote changed             may FORGET them                   damaged, unless term or vote only rose
//	file or directory unreadable                        refuses                           damaged
//	a name of 128 bytes or more                         aborts                            damaged
//	identity.json missing or changed                    (pkg/store/member refuses)        damaged
//
// Capitals: silently. "Shifts": gives entries a wrong index.
//
// # How an unfinished write is told from a stored one
//
// dqlite writes one thing at a time, behind what is there, in a segment of zeros; disks write whole sectors. So of an
// unfinished write some sector reads as zeros, no write of a later time follows, and its checksum is not off by exactly
// one bit. (A member that lags may write several commands at once; such a write, unfinished in its first part, is called
// damage. It costs a copy of the data, and one member at a time can be in that state.)
//
// # What nothing in the directory tells
//
//   - Sectors of the very last write that read as zeros: that is what an unfinished write looks like.
//   - Damage of more than one bit in the last write, if one of its sectors was all zeros.
//   - The loss of all of the open segment, or of its end exactly between two batches. The mark bounds this to entries
//     since the last closed segment, at most the entries between two snapshots.
//
// A disk that drops what it said was flushed loses the newest entries on any system; on a cluster the leader sends them
// again, unless a majority lost the same ones.
package damage
