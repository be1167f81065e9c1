package bench

import (
	"slices"
	"time"
)

// Percentile returns the value below which the share p of all lies; 0 of
// none. It sorts them.
func Percentile[T time.Duration | float64](all []T, p float64) T {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(int(p*float64(len(all))), len(all)-1)]
}

// Median is the 50th percentile. It sorts all.
func Median[T time.Duration | float64](all []T) T { return Percentile(all, 0.5) }

// Milliseconds is d in ms, for figures.
func Milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }
