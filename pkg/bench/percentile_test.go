package bench

import (
	"slices"
	"testing"
)

func TestPercentile(t *testing.T) {
	for _, tt := range []struct {
		all  []float64
		p    float64
		want float64
	}{
		{nil, 0.5, 0}, {[]float64{7}, 0.99, 7}, {[]float64{3, 1, 2}, 0.5, 2}, {[]float64{1, 2, 3, 4}, 1, 4}, {[]float64{4, 3, 2, 1}, 0, 1},
	} {
		if got := Percentile(slices.Clone(tt.all), tt.p); got != tt.want {
			t.Errorf("Percentile(%v, %v) = %v; want %v", tt.all, tt.p, got, tt.want)
		}
	}
}
