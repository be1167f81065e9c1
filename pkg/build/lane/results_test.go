package lane

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResults(t *testing.T) {
	const unit = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestSlow","Output":"    time=2026 msg=starting\n"}
{"Action":"output","Package":"p","Test":"TestSlow","Output":"I1121 20:57:31.845014 3646 warnings.go:107] words\n"}
{"Action":"output","Package":"p","Test":"TestSlow","Output":"    x_test.go:7: 12 writes\n"}
{"Action":"pass","Package":"p","Test":"TestSlow","Elapsed":7}
{"Action":"output","Package":"p","Test":"TestVM","Output":"=== RUN   TestVM\n"}
{"Action":"output","Package":"p","Test":"TestVM","Output":"    x_test.go:3: belongs to the vm lane\n"}
{"Action":"output","Package":"p","Test":"TestVM","Output":"--- SKIP: TestVM (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestVM","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestRoot","Output":"    x_test.go:9: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestRoot","Elapsed":0}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: F() = 1; want 2\n"}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0}
{"Action":"fail","Package":"p","Elapsed":1.5}
{"Action":"pass","Package":"q","Test":"TestEnded","Elapsed":0}
{"Action":"output","Package":"q","Test":"TestEnded","Output":"what its goroutine says later\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"panic: lost\n"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t2.0s\n"}
{"Action":"fail","Package":"q","Elapsed":2}
not json
`
	const vm = `{"Action":"pass","Package":"p","Test":"TestVM","Elapsed":0.2}
`
	var r results
	var out bytes.Buffer
	for _, in := range []string{unit, vm} {
		if err := r.read(strings.NewReader(in), &out, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	r.print(&out)
	want := `     p TestSlow 7s
         x_test.go:7: 12 writes
    b_test.go:1: F() = 1; want 2
FAIL p  1.5s
=== RUN   TestC
panic: lost
FAIL q TestC: its process ended in it
FAIL	q	2.0s
FAIL q  2s
not json
skipped p TestRoot: x_test.go:9: needs root
4 passed, 2 failed, 1 skipped
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}
