package store

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
	`CREATE UNIQUE INDEX IF NOT EXISTS kv_name ON kv (name, id DESC, deleted)`,
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
		SELECT 1, 2, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM meta)`,
}

// format is the version of the schema that this package reads and writes.
const format = 2

// The writes. Each is one statement that inserts a row when its comparison
// holds and none otherwise, so a comparison and its write cannot be parted.
const (
	// ?1 name, ?2 lease, ?3 value
	sqlCreate = `INSERT INTO kv (name, prev, created, version, lease, deleted, value)
		SELECT ?1, 0, 0, 1, ?2, 0, ?3 WHERE NOT EXISTS (
			SELECT 1 FROM kv WHERE id = (SELECT max(id) FROM kv WHERE name = ?1) AND deleted = 0)`
	// ?1 name, ?2 lease, ?3 value, ?4 revision
	sqlUpdate = `INSERT INTO kv (name, prev, created, version, lease, deleted, value)
		SELECT name, id, CASE created WHEN 0 THEN id ELSE created END, version + 1, ?2, 0, ?3
		FROM kv WHERE id = ?4 AND name = ?1 AND deleted = 0
		AND id = (SELECT max(id) FROM kv WHERE name = ?1)`
	// ?1 name, ?2 lease, ?3 value
	sqlPut = `INSERT INTO kv (name, prev, created, version, lease, deleted, value)
		SELECT ?1, coalesce(l.id, 0), coalesce(CASE l.created WHEN 0 THEN l.id ELSE l.created END, 0),
			coalesce(l.version, 0) + 1, ?2, 0, ?3
		FROM (SELECT 1) LEFT JOIN kv l
		ON l.id = (SELECT max(id) FROM kv WHERE name = ?1) AND l.deleted = 0`
	// ?1 name, ?2 revision, 0 for any
	sqlDelete = `INSERT INTO kv (name, prev, created, version, lease, deleted, value)
		SELECT name, id, 0, 0, 0, 1, x''
		FROM kv WHERE id = (SELECT max(id) FROM kv WHERE name = ?1) AND deleted = 0
		AND (?2 = 0 OR id = ?2)`
)

// The reads.
const (
	sqlRevision = `SELECT max(id) FROM kv`
	sqlMeta     = `SELECT format, compacted, swept FROM meta`
	sqlSize     = `SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()`
	// ?1 name, ?2 revision
	sqlGet = `SELECT id, name, created, version, lease, deleted, value FROM kv
		WHERE name = ?1 AND id <= ?2 ORDER BY id DESC LIMIT 1`
	// The latest row of each name is found in the index alone.
	// ?1 start, ?2 end, ?3 revision, ?4 limit, -1 for none
	sqlListHead = `SELECT kv.id, kv.name, kv.created, kv.version, kv.lease, kv.deleted, `
	sqlListTail = ` FROM (SELECT name AS n, max(id * 2 + deleted) AS latest FROM kv WHERE `
	sqlListEnd  = ` AND id <= ?3 GROUP BY name HAVING max(id * 2 + deleted) % 2 = 0 ORDER BY name LIMIT ?4) AS l
		CROSS JOIN kv ON kv.id = l.latest / 2 ORDER BY l.n`
	sqlCountHead = `SELECT count(*) FROM (SELECT 1 FROM kv WHERE `
	sqlCountTail = ` AND id <= ?3 GROUP BY name HAVING max(id * 2 + deleted) % 2 = 0)`
	// What watches see: rows in order of revision, each with the row it
	// replaced. The unary plus keeps SQLite on the primary key.
	// ?1 start, ?2 end, ?3 after, ?4 up to, ?5 limit
	sqlAfterHead = `SELECT e.id, e.name, e.prev, e.created, e.version, e.lease, e.deleted, e.value,
			p.created, p.version, p.lease, p.value
		FROM kv e LEFT JOIN kv p ON p.id = e.prev
		WHERE e.id > ?3 AND e.id <= ?4 AND `
	sqlAfterTail = ` ORDER BY e.id LIMIT ?5`
	sqlLeased    = `SELECT id, name, lease FROM kv k WHERE lease > 0 AND deleted = 0
		AND id = (SELECT max(id) FROM kv WHERE name = k.name)`
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
)
