package store

// What raft keeps of its log in memory and on disk is counted in entries, and
// an entry is a transaction. Few large ones between snapshots would be cheap
// to write and dear to hold, so the writer sees to their size.
const (
	// SnapshotEntries is how many entries of raft's log come between two
	// snapshots, and how many are kept beyond. A snapshot writes the whole
	// database: of 25 MB of objects that is 150 kB for each update with 128
	// entries, 8 kB with 2048.
	SnapshotEntries = 2048
	// heldBytes is what twice as many entries may take, in the long run.
	heldBytes = 24 << 20
	// earned is what each entry may take, in the mean.
	earned = heldBytes / (2 * SnapshotEntries)
	// entryCost is what an entry takes beside its rows: parts of pages.
	entryCost = 2 << 10
)

// ledger balances the bytes of log entries against their number. A burst is
// paid from what quiet times have saved. It begins at maxSaved.
type ledger int

const maxSaved ledger = heldBytes / 2

// spend counts an entry of so many bytes of rows.
func (l *ledger) spend(bytes int) {
	*l = min(*l+earned-ledger(entryCost+bytes), maxSaved)
}

// allowance is how many bytes of writes may share the next entry: in debt as
// many as make no more of it.
func (l *ledger) allowance() int {
	return int(max(min(*l, maxBatchBytes), 0)) + earned - entryCost
}

// overdrawn says that entries without rows are due: log that is held goes by
// their number.
func (l *ledger) overdrawn() bool { return *l < -maxSaved }
