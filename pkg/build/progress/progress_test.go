package progress

import (
	"bytes"
	"errors"
	"regexp"
	"testing"
	"testing/synctest"
	"time"
)

func TestStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := New(&out)
		s := p.Start("kernel: compile")
		s.Update("120/9000")
		time.Sleep(Interval + time.Second)
		s.Done(nil)
		err := errors.New("x")
		s = p.Start("root: pack")
		s.Done(&err)
		want := regexp.MustCompile(`^==> kernel: compile
    kernel: compile: 5s 120/9000
    kernel: compile: done in 6s
==> root: pack
    root: pack: failed after 0s
$`)
		if !want.Match(out.Bytes()) {
			t.Errorf("a step printed\n%s", out.String())
		}
	})
}
