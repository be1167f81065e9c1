package guard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
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
