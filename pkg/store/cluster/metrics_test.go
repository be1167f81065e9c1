//go:build cgo

package cluster

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestMetrics reads them as Prometheus would, from the leader and from a
// follower.
func TestMetrics(t *testing.T) {
	c := newTestCluster(t)
	a, b := c.add(), c.add()
	c.roles(a, "n1 voter", "n2 standby")
	put(t, c.client(t, b), "/t/a")
	for _, x := range []struct {
		node *testNode
		want []string
	}{
		{a, []string{
			"cairn_store_leader 1", "cairn_store_has_leader 1", "cairn_store_raft_term ", `role="voter"} 1`, `role="standby"} 1`,
			"cairn_store_revision 2", "cairn_store_pressure 0", "cairn_store_written_bytes_total ", "cairn_store_probe_sync_seconds ",
			"cairn_store_commit_seconds_count ", "cairn_store_writes_total ", "go_goroutines ",
		}},
		{b, []string{"cairn_store_leader 0", "cairn_store_has_leader 1", "cairn_store_raft_term "}},
	} {
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", x.node.config.AdminSocket)
		}}}
		resp, err := client.Get("http://store/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.Body.Close() != nil {
			t.Fatal(err)
		}
		client.CloseIdleConnections()
		for _, want := range x.want {
			if !strings.Contains(string(text), "\n"+want) && !strings.Contains(string(text), want+"\n") {
				t.Errorf("%s: no %q in the metrics", x.node.name, want)
			}
		}
	}
}
