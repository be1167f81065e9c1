package runner

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestConsole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var copied strings.Builder
		c := NewConsole(&copied)
		go func() {
			for _, part := range []string{"phase 1/2 da", "ta 38ms\r\nphase", " 2/2 \x1b[0mnet 1s\n"} {
				time.Sleep(time.Second)
				if _, err := c.Write([]byte(part)); err != nil {
					t.Error(err)
				}
			}
		}()
		start := time.Now()
		line, n, err := c.Wait(t.Context(), regexp.MustCompile(`^phase \d/2 net`), 0)
		if err != nil || line.Text != "phase 2/2 net 1s" || n != 1 || line.At.Sub(start) != 3*time.Second {
			t.Errorf("Wait = %+v after %s, %d, %v; want the second line after 3s", line, line.At.Sub(start), n, err)
		}
		if l, ok := c.Find(regexp.MustCompile(`data`)); !ok || l.Text != "phase 1/2 data 38ms" {
			t.Errorf("Find(data) = %+v, %v; want the first line", l, ok)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := c.Wait(ctx, regexp.MustCompile(`data`), 1); err == nil || !strings.Contains(err.Error(), "net 1s") {
			t.Errorf("Wait for a line that came before = %v; want an error that shows the console's end", err)
		}
		if !strings.Contains(copied.String(), "\x1b[0mnet") {
			t.Errorf("the copy lost bytes: %q", copied.String())
		}
	})
}
