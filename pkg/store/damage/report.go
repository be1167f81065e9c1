package damage

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Severity says what may be done with a directory in spite of a finding.
type Severity int

const (
	// Harmless is what a power cut or a kill leaves behind and dqlite
	// recovers from by itself, with every acknowledged entry.
	Harmless Severity = iota
	// Repairable is what a power cut leaves behind, holds nothing that was
	// acknowledged, and keeps dqlite from starting. Repair mends it.
	Repairable
	// Damaged means that dqlite refuses to start, or would start with less
	// than it acknowledged or with a forgotten vote. The member must not run
	// on this directory.
	Damaged
)

func (s Severity) String() string {
	switch s {
	case Harmless:
		return "harmless"
	case Repairable:
		return "repairable"
	case Damaged:
		return "damaged"
	default:
		return fmt.Sprintf("severity %d", int(s))
	}
}

// Kind is what was found, as a word for logs, metrics and directory names.
type Kind string

const (
	TornTail   Kind = "torn-tail"          // the last write of the log did not finish
	Unneeded   Kind = "unneeded-file"      // dqlite removes or ignores it
	Unknown    Kind = "unknown-file"       // not dqlite's and not ours
	Unreadable Kind = "unreadable"         // the disk or the permissions refuse
	Segment    Kind = "segment"            // part of the log is short or does not match its checksum
	Gap        Kind = "gap"                // parts of the log do not follow each other
	Lost       Kind = "lost-entries"       // dqlite would start and drop stored entries without a word
	Metadata   Kind = "metadata"           // term and vote
	Snapshot   Kind = "snapshot"           // the snapshot that the log starts from
	Identity   Kind = "identity"           // identity.json
	BehindMark Kind = "behind-mark"        // the log ends before what was known to be stored
	Unfinished Kind = "unfinished-write"   // a power cut in the middle of a change of files
	Bootstrap  Kind = "unfinished-cluster" // a power cut while the cluster was founded
)

// Finding is one thing that is not as a clean stop leaves it.
type Finding struct {
	Severity Severity
	Kind     Kind
	// File is the name inside the directory, or "." for the directory itself.
	File string
	// Offset is the byte in the file at which it begins; -1: the whole file.
	Offset int64
	// Text says what is wrong and what follows from it.
	Text string
	// Silent is set on damage that dqlite does not notice: it would start and
	// answer with less than it acknowledged.
	Silent bool

	repair repair
}

func (f Finding) String() string {
	at := f.File
	if f.Offset >= 0 {
		at = fmt.Sprintf("%s at byte %d", f.File, f.Offset)
	}
	return fmt.Sprintf("%s: %s: %s", f.Severity, at, f.Text)
}

// Report is what Inspect found in a member's directory.
type Report struct {
	Dir      string
	Findings []Finding
	// Empty means that no entry has ever been stored here.
	Empty bool
	// Term and Vote are the newest ones that were persisted.
	Term, Vote uint64
	// Snapshot is the index of the newest snapshot that dqlite would load; 0: none.
	Snapshot uint64
	// LastIndex and LastTerm are those of the last entry that dqlite would load.
	LastIndex, LastTerm uint64
}

// Severity is the worst one of all findings.
func (r Report) Severity() Severity {
	worst := Harmless
	for _, f := range r.Findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Damaged reports whether the member must not run on the directory.
func (r Report) Damaged() bool { return r.Severity() == Damaged }

// Reason is the kind of the first damage; "" if there is none.
func (r Report) Reason() Kind {
	for _, f := range r.Findings {
		if f.Severity == Damaged {
			return f.Kind
		}
	}
	return ""
}

// ErrDamaged is wrapped by each error that says that stored data are damaged.
var ErrDamaged = errors.New("the stored data are damaged")

// Err is nil unless the directory is damaged. It names each damage.
func (r Report) Err() error {
	var texts []string
	for _, f := range r.Findings {
		if f.Severity == Damaged {
			texts = append(texts, strings.TrimPrefix(f.String(), "damaged: "))
		}
	}
	if texts == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", ErrDamaged, r.Dir, strings.Join(texts, "; "))
}

// String is the report as text, one finding a line, worst first.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "directory %s: %s\n", r.Dir, r.Severity())
	fmt.Fprintf(&b, "term %d, vote %016x, snapshot at %d, last entry %d of term %d\n", r.Term, r.Vote, r.Snapshot, r.LastIndex, r.LastTerm)
	findings := slices.Clone(r.Findings)
	slices.SortStableFunc(findings, func(a, b Finding) int { return int(b.Severity) - int(a.Severity) })
	for _, f := range findings {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}
