// Package external keeps Kubernetes' state in a database that somebody else
// runs: PostgreSQL, MySQL or MariaDB, through kine's drivers and behind the same
// front as Cairn's own store. It mends what of kine's behaviour would mislead an
// apiserver; DESIGN.md lists that and what is left.
package external
