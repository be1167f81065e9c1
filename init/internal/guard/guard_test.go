package guard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func nilMap() map[string]int { return nil }

func TestGo(t *testing.T) {
	var logged string
	logf := func(format string, args ...any) { logged += fmt.Sprintf(format, args...) + "\n" }
	<-Go(logf, "hotplug", func() error { nilMap()["x"] = 1; return nil })
	if !strings.HasPrefix(logged, "hotplug: a bug in init: assignment to entry in nil map") || !strings.Contains(logged, "guard_test.go") {
		t.Errorf("a panic logged %q; want its name, value and stack", logged)
	}
	logged = ""
	<-Go(logf, "network", func() error { return errors.New("no link") })
	<-Go(logf, "quiet", func() error { return nil })
	if logged != "network: no link\n" {
		t.Errorf("logged %q; want the error only", logged)
	}
}

func TestWithin(t *testing.T) {
	var logged string
	logf := func(format string, args ...any) { logged += fmt.Sprintf(format, args...) + "\n" }
	if !Within(time.Minute, logf, "sync", func() error { return nil }) || logged != "" {
		t.Errorf("Within() of what ends at once logged %q", logged)
	}
	hang := make(chan struct{})
	defer close(hang)
	if Within(time.Millisecond, logf, "sync", func() error { <-hang; return nil }) || logged != "sync: did not end within 1ms; going on without\n" {
		t.Errorf("Within() of what hangs logged %q", logged)
	}
}
