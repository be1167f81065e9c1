package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// Budget is what a figure should keep; the zero value sets none.
type Budget struct {
	kind  budgetKind
	bound float64
}

type budgetKind int

const (
	none budgetKind = iota
	atLeastPeer
	atMostPeer
	atMost
)

// AtLeastPeer wants at least x times the peer's figure.
func AtLeastPeer(x float64) Budget { return Budget{atLeastPeer, x} }

// AtMostPeer wants at most x times the peer's figure.
func AtMostPeer(x float64) Budget { return Budget{atMostPeer, x} }

// AtMost wants at most bound, in the figure's unit, whatever the peer does.
func AtMost(bound float64) Budget { return Budget{atMost, bound} }

func (b Budget) String() string {
	switch b.kind {
	case atLeastPeer:
		return fmt.Sprintf("≥ %.4gx", b.bound)
	case atMostPeer:
		return fmt.Sprintf("≤ %.4gx", b.bound)
	case atMost:
		return fmt.Sprintf("≤ %.4g", b.bound)
	default:
		return ""
	}
}

// MarshalText implements encoding.TextMarshaler.
func (b Budget) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// kept says whether the budget is kept. A comparison with a peer that has no
// figure is not.
func (b Budget) kept(cairn, ratio float64) bool {
	switch b.kind {
	case atLeastPeer:
		return ratio >= b.bound
	case atMostPeer:
		return ratio <= b.bound
	case atMost:
		return cairn <= b.bound
	default:
		return true
	}
}

// Figure is one measured value.
type Figure struct {
	Name, Unit  string
	Cairn, Peer float64 // NaN: was not measured
	Budget      Budget
}

// Ratio is Cairn's figure in peers' ones; NaN without a peer.
func (f Figure) Ratio() float64 {
	if f.Peer == 0 {
		return math.NaN()
	}
	return f.Cairn / f.Peer
}

// OK says whether the budget, if there is one, is kept.
func (f Figure) OK() bool { return f.Budget.kept(f.Cairn, f.Ratio()) }

// MarshalJSON implements json.Marshaler. What was not measured is null.
func (f Figure) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name   string   `json:"name"`
		Unit   string   `json:"unit"`
		Cairn  *float64 `json:"cairn"`
		Peer   *float64 `json:"peer"`
		Ratio  *float64 `json:"ratio"`
		Budget Budget   `json:"budget"`
		OK     bool     `json:"ok"`
	}{f.Name, f.Unit, number(f.Cairn), number(f.Peer), number(f.Ratio()), f.Budget, f.OK()})
}

func number(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}

// Report is the outcome of a benchmark.
type Report struct {
	Peer    string   `json:"peer"`    // what was measured beside, such as "etcd 3.6.13"
	Version string   `json:"version"` // of the sources, as git describes them
	Started string   `json:"started"` // RFC 3339
	Load    string   `json:"load"`    // load averages before and after: what else the machine did
	Notes   []string `json:"notes,omitempty"`
	Figures []Figure `json:"figures"`
}

// Write writes the report to path and creates its folder.
func (r *Report) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, append(text, '\n'), 0o644)
}

// Print prints the table. A missed budget is told in its last column.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "figure\tunit\tcairn\tpeer\tratio\tbudget\t\n")
	missed := 0
	for _, f := range r.Figures {
		verdict := ""
		if f.Budget.kind != none {
			verdict = "ok"
			if !f.OK() {
				verdict = "MISSED"
				missed++
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, f.Unit, digits(f.Cairn), digits(f.Peer), digits(f.Ratio()), f.Budget, verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	_, err := fmt.Fprintf(w, "peer: %s; version: %s; load: %s; budgets missed: %d\n", r.Peer, r.Version, r.Load, missed)
	return err
}

// digits writes three significant digits, and all of those before the point.
func digits(x float64) string {
	switch a := math.Abs(x); {
	case math.IsNaN(x) || math.IsInf(x, 0):
		return "-"
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}
