package store

import (
	"fmt"
	"testing"
)

// TestAdmit tells what is accepted at which size of a database of 1000 bytes.
func TestAdmit(t *testing.T) {
	for _, tc := range []struct {
		key      string
		replaces bool
		upTo     int64 // the last size, in steps of 10 bytes, at which it is accepted
	}{
		{"/registry/events/a/1", false, 890},
		{"/registry/pods/a/1", false, 990},
		{"/registry/pods/a/1", true, 990},
		{"/registry/leases/a/1", false, 1040},
		{"/registry/leases/a/1", true, 1200},
		{"/registry/masterleases/10.0.0.1", false, 1040},
		{"/registry/masterleases/10.0.0.1", true, 1200},
		{compactKeyStored, true, 1200},
	} {
		t.Run(fmt.Sprintf("%s replaces=%t", tc.key, tc.replaces), func(t *testing.T) {
			q := newQuota(1000)
			for used := int64(800); used <= 1200; used += 10 {
				q.measure(used)
				if err := q.admit(tc.key, tc.replaces); (err == nil) != (used <= tc.upTo) {
					t.Errorf("at %d bytes: %v; want success up to %d", used, err, tc.upTo)
				}
			}
		})
	}
}
