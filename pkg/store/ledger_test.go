package store

import "testing"

// TestLedger holds what the log takes within its bound whatever is written: at
// any time the last 2*SnapshotEntries entries are within twice heldBytes.
func TestLedger(t *testing.T) {
	for name, writes := range map[string]func(i, allowed int) int{
		"lone small writes":     func(int, int) int { return 500 },
		"as much as is allowed": func(_, allowed int) int { return allowed },
		"large objects":         func(int, int) int { return 1 << 20 },
		"large after idling": func(i, _ int) int {
			if i < 3*SnapshotEntries {
				return 0
			}
			return 300 << 10
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := maxSaved
			var log []int
			held, most, idle := 0, 0, 0
			add := func(bytes int) {
				l.spend(bytes)
				log = append(log, entryCost+bytes)
				held += entryCost + bytes
				if len(log) > 2*SnapshotEntries {
					held -= log[len(log)-1-2*SnapshotEntries]
				}
				most = max(most, held)
			}
			for i := range 8 * SnapshotEntries {
				add(writes(i, l.allowance()))
				for l.overdrawn() {
					add(0)
					idle++
				}
			}
			if most > 2*heldBytes+1<<20 {
				t.Errorf("%d MB are held; want at most %d", most>>20, 2*heldBytes>>20)
			}
			if name == "lone small writes" && idle > 0 {
				t.Errorf("%d entries without rows beside small writes", idle)
			}
		})
	}
}
