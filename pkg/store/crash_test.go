//go:build cgo

package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// storeDir makes the test binary run a store there instead of tests.
const storeDir = "CAIRN_TEST_STORE_DIR"

// TestServe is the store process of the crash tests.
func TestServe(t *testing.T) {
	dir := os.Getenv(storeDir)
	if dir == "" {
		t.Skip("the crash tests' child process")
	}
	start(t, dir)
	fmt.Println("serving")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
}

// spawn runs a store on dir in a process of its own and waits until it serves.
func spawn(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestServe$", "-test.v")
	cmd.Env = append(os.Environ(), storeDir+"="+dir, "MALLOC_ARENA_MAX=1")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	var seen []string
	for lines.Scan() {
		if lines.Text() == "serving" {
			go func() {
				for lines.Scan() {
				}
			}()
			return cmd
		}
		seen = append(seen, lines.Text())
	}
	t.Fatalf("the store did not start:\n%s", strings.Join(seen, "\n"))
	return nil
}

// TestKill kills the store while clients write, again and again: whatever it
// acknowledged must be there afterwards, and revisions only grow.
func TestKill(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	dir := t.TempDir()
	acknowledged := map[string]string{} // key to the value last acknowledged
	attempted := map[string]string{}    // key to the value that may be there instead
	var last int64
	for round := range rounds {
		cmd := spawn(t, dir)
		client := connect(t, filepath.Join(dir, "sock"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		last = verify(ctx, t, client, acknowledged, attempted, last)
		writeUntilKilled(ctx, t, client, cmd, acknowledged, attempted, round, &last)
		cancel()
		_ = client.Close()
	}
	spawn(t, dir)
	verify(t.Context(), t, connect(t, filepath.Join(dir, "sock")), acknowledged, attempted, last)
	t.Logf("%d keys, revision %d after %d kills", len(acknowledged), last, rounds)
}

// verify compares the store with what was acknowledged and returns its
// revision.
func verify(ctx context.Context, t *testing.T, client *clientv3.Client, acknowledged, attempted map[string]string, last int64) int64 {
	t.Helper()
	resp, err := client.Get(ctx, "/t/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Revision < last {
		t.Errorf("revision %d after a restart; was %d", resp.Header.Revision, last)
	}
	found := map[string]string{}
	for _, kv := range resp.Kvs {
		found[string(kv.Key)] = string(kv.Value)
	}
	for key, want := range acknowledged {
		got, ok := found[key]
		if ok && got == attempted[key] {
			acknowledged[key] = got // Its answer was lost, not the write.
			continue
		}
		if !ok || got != want {
			t.Errorf("%s = %q, %t after a restart; %q was acknowledged, %q attempted", key, got, ok, want, attempted[key])
		}
	}
	return resp.Header.Revision
}

func writeUntilKilled(ctx context.Context, t *testing.T, client *clientv3.Client, cmd *exec.Cmd, acknowledged, attempted map[string]string, round int, last *int64) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for c := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("/t/%d/%d", c, i%20)
				value := fmt.Sprintf("%d-%d-%s", round, i, strings.Repeat("x", 1000))
				mu.Lock()
				attempted[key] = value
				mu.Unlock()
				resp, err := client.Put(ctx, key, value)
				if err != nil {
					return
				}
				mu.Lock()
				acknowledged[key] = value
				*last = max(*last, resp.Header.Revision)
				mu.Unlock()
			}
		})
	}
	time.Sleep(time.Duration(100+rand.IntN(700)) * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	close(stop)
	wg.Wait()
}

// TestRestart stops the store in order and starts it again: history, leases
// and the compact revision are kept.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	n := start(t, dir)
	client := connect(t, n.socket)
	ctx := t.Context()
	lease, err := client.Grant(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	var revs []int64
	for i := range 6 {
		resp, err := client.Put(ctx, "/t/a", strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		revs = append(revs, resp.Header.Revision)
	}
	if _, err := client.Put(ctx, "/t/leased", "1", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, revs[2]); err != nil {
		t.Fatal(err)
	}
	stopping := time.Now()
	watch := client.Watch(ctx, "/t/", clientv3.WithPrefix()) // An open watch must not delay the end.
	n.stop()
	if took := time.Since(stopping); took > 3*time.Second {
		t.Errorf("stop took %s; want less than 3s", took)
	}
	_ = watch
	_ = client.Close()

	client = connect(t, start(t, dir).socket)
	if _, err := client.Get(ctx, "/t/a", clientv3.WithRev(revs[1])); err == nil {
		t.Errorf("get at compacted revision %d succeeds after a restart", revs[1])
	}
	resp, err := client.Get(ctx, "/t/a", clientv3.WithRev(revs[3]))
	if err != nil || string(resp.Kvs[0].Value) != "3" {
		t.Errorf("get at %d = %v, %v; want 3", revs[3], resp, err)
	}
	gone := client.Watch(ctx, "/t/leased", clientv3.WithRev(revs[5]+2))
	select {
	case resp := <-gone:
		if err := resp.Err(); err != nil || len(resp.Events) != 1 || resp.Events[0].Type != clientv3.EventTypeDelete {
			t.Errorf("watch of a leased key: %v, %v; want its deletion", resp.Events, err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a leased key does not expire after a restart")
	}
}
