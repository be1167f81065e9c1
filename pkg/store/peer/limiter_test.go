package peer

import (
	"fmt"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimiter(func() time.Time { return now })
	logged := 0
	for range 100 {
		if _, ok := l.allow("a"); ok {
			logged++
		}
	}
	if _, ok := l.allow("b"); !ok || logged != 1 {
		t.Errorf("a was logged %d times in a minute, b: %v; want once each", logged, ok)
	}
	now = now.Add(noteInterval)
	if skipped, ok := l.allow("a"); !ok || skipped != 99 {
		t.Errorf("after a minute: %v, %d left out; want true, 99", ok, skipped)
	}
	for i := range 10 * noteKeys {
		l.allow(fmt.Sprint(i))
	}
	if len(l.notes) > noteKeys {
		t.Errorf("%d notes are kept; want at most %d", len(l.notes), noteKeys)
	}
	now = now.Add(noteInterval)
	if _, ok := l.allow("new"); !ok {
		t.Error("a full limiter did not forget")
	}
}
