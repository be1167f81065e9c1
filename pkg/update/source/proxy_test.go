package source_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/update/source"
)

// TestProxy runs the test's program again, because net/http reads the environment once.
func TestProxy(t *testing.T) {
	const marker = "CAIRN_TEST_PROXY"
	if os.Getenv(marker) != "" {
		data, err := source.Get(t.Context(), open(t, "http://releases.example/rel", nil), "f.bin", 100)
		if err != nil || string(data) != "by the proxy" {
			t.Errorf("Get = %q, %v", data, err)
		}
		return
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "http://releases.example/rel/f.bin" {
			t.Errorf("the proxy was asked for %s", r.URL)
		}
		w.Write([]byte("by the proxy"))
	}))
	defer proxy.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxy$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"=1", "http_proxy="+proxy.URL, "HTTP_PROXY="+proxy.URL, "no_proxy=", "NO_PROXY=")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestProxy") {
		t.Errorf("%v\n%s", err, out)
	}
}
