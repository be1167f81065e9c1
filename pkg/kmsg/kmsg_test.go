package kmsg

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// records keeps every write apart, as the device does.
type records []string

func (r *records) Write(p []byte) (int, error) {
	*r = append(*r, string(p))
	return len(p), nil
}

func TestWrite(t *testing.T) {
	long := strings.Repeat("x", LineMax)
	tests := []struct {
		name, in string
		want     records
	}{
		{"line", "phase 1/15 mounts 3ms\n", records{"<6>cairn: phase 1/15 mounts 3ms\n"}},
		{"lines", "a\n\nb", records{"<6>cairn: a\n", "<6>cairn: \n", "<6>cairn: b\n"}},
		{"long", long + "yz\n", records{"<6>cairn: " + long + "\n", "<6>cairn: yz\n"}},
		{"empty", "\n", records{"<6>cairn: \n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got records
			n, err := NewWriter(&got, Info, "cairn: ").Write([]byte(tt.in))
			if err != nil || n != len(tt.in) {
				t.Fatalf("Write(%q) = %d, %v; want %d, nil", tt.in, n, err, len(tt.in))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}
