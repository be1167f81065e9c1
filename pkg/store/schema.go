package store

import (
	"fmt"
	"strings"
)

// Every change is one row, and the row's id is the revision. Rows are never
// altered; compaction alone removes them. DESIGN.md explains each column.
var schema = []string{
	`CREATE TABLE IF NOT EXISTS kv (
		id      INTEGER PRIMARY KEY,
		name    BLOB    NOT NULL,
		prev    INTEGER NOT NULL,
		created INTEGER NOT NULL,
		version INTEGER NOT NULL,
		lease   INTEGER NOT NULL,
		deleted INTEGER NOT NULL,
		value   BLOB    NOT NULL
	)`,
	`CREATE TABLE IF NOT EXISTS meta (
		one       INTEGER PRIMARY KEY CHECK (one = 1),
		format    INTEGER NOT NULL,
		compacted INTEGER NOT NULL,
		swept     INTEGER NOT NULL
	)`,
	// etcd's first revision is 1, and revision 0 means "any" to its clients:
	// an empty store needs a row. kine's health key is that row.
	`INSERT INTO kv (id, name, prev, created, version, lease, deleted, value)
		SELECT 1, CAST('/registry/health' AS BLOB), 0, 0, 1, 0, 0, CAST(x'00' || '{"health":"true"}' AS BLOB)
		WHERE NOT EXISTS (SELECT 1 FROM meta)`,
	`INSERT INTO meta (one, format, compacted, swept)
		SELECT 1, 4, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM meta)`,
}

// format is the version of the schema that this package reads and writes.
const format = 4

// rowParameters is the number of parameters of a row in sqlInsert.
const rowParameters = 8

// sqlInsert inserts up to n rows with the revisions that they name, unless the
// newest row is another than the one before the first of them: what the
// writer knew when it compared is then what the database holds. Rows of NULLs
// are left out.
func sqlInsert(n int) string {
	var rows strings.Builder
	for i := range n {
		if i > 0 {
			rows.WriteString(", ")
		}
		for column := range rowParameters {
			separator := ", "
			if column == 0 {
				separator = "("
			}
			fmt.Fprintf(&rows, "%s?%d", separator, i*rowParameters+column+1)
		}
		rows.WriteString(")")
	}
	return `INSERT INTO kv (id, name, prev, created, version, lease, deleted, value)
		SELECT * FROM (VALUES ` + rows.String() + `)
		WHERE column1 IS NOT NULL AND (SELECT max(id) FROM kv) = ?1 - 1`
}

// The reads.
const (
	sqlMeta = `SELECT format, compacted, swept FROM meta`
	sqlSize = `SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()`
	// What the index is made of. ?1 after, ?2 limit
	sqlIndex = `SELECT id, name, created, version, lease, deleted FROM kv WHERE id > ?1 ORDER BY id LIMIT ?2`
	// ?1 after
	sqlRowsAfter = `SELECT id, name, prev, created, version, lease, deleted, value FROM kv WHERE id > ?1 ORDER BY id`
	// ?1 a list of revisions as JSON
	sqlRows = `SELECT id, name, prev, created, version, lease, deleted, value FROM kv
		WHERE id IN (SELECT value FROM json_each(?1))`
	sqlRowsKeys = `SELECT id, name, prev, created, version, lease, deleted, NULL FROM kv
		WHERE id IN (SELECT value FROM json_each(?1))`
	sqlLengths = `SELECT id, length(value) FROM kv WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id`
	// What watches see: rows in order of revision, each with the row it
	// replaced. The unary plus keeps SQLite on the primary key.
	// ?1 start, ?2 end, ?3 after, ?4 up to, ?5 limit
	sqlAfterHead = `SELECT e.id, e.name, e.prev, e.created, e.version, e.lease, e.deleted, e.value,
			p.created, p.version, p.lease, p.value
		FROM kv e LEFT JOIN kv p ON p.id = e.prev
		WHERE e.id > ?3 AND e.id <= ?4 AND `
	sqlAfterTail = ` ORDER BY e.id LIMIT ?5`
)

// Compaction. A row goes once a row older than the compact revision replaced
// it; a tombstone goes once it is older itself. The newest row is never older
// than the compact revision, so max(id), and with it the next revision, stays.
const (
	sqlCompact = `UPDATE meta SET compacted = ?1 WHERE compacted < ?1`
	// ?1 from, ?2 to (not included)
	sqlSweepReplaced   = `DELETE FROM kv WHERE id IN (SELECT prev FROM kv WHERE id >= ?1 AND id < ?2 AND prev > 0)`
	sqlSweepTombstones = `DELETE FROM kv WHERE id >= ?1 AND id < ?2 AND deleted = 1`
	sqlSwept           = `UPDATE meta SET swept = ?1`
	// sqlTouch writes without a change. When it is answered, whatever earlier
	// leaders committed is in the database.
	sqlTouch = `UPDATE meta SET swept = swept`
)
