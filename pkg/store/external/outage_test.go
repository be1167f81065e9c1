package external

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// outageLength is how long the database is away.
const outageLength = 10 * time.Second

// outage stops the database amid writes and starts it again. Writes fail with
// Unavailable, then go on without a restart; what was acknowledged is there, and
// a watch from before sees it or has been ended.
func outage(t *testing.T, d *database) {
	logged := &buffer{}
	r := serve(t, d.url(), slog.New(slog.NewTextHandler(logged, nil)))
	c := connect(t, r.socket)
	ctx, stop := context.WithTimeout(t.Context(), 120*time.Second)
	defer stop()
	var (
		mu        sync.Mutex
		kept      = map[string]string{}
		failed    = map[codes.Code]int{}
		lastError error
		back      time.Time
		since     int // writes after the database came back
		writers   sync.WaitGroup
	)
	done := make(chan struct{})
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				key, value := fmt.Sprintf("/t/%d-%d", w, i), fmt.Sprint(i)
				call, cancel := context.WithTimeout(ctx, 30*time.Second)
				_, err := c.Txn(call).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
				cancel()
				mu.Lock()
				if err != nil {
					failed[status.Code(err)]++
					lastError = err
				} else {
					kept[key] = value
					if !back.IsZero() {
						since++
					}
				}
				mu.Unlock()
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	d.stop(t, syscall.SIGKILL)
	time.Sleep(outageLength)
	d.start(t)
	mu.Lock()
	back = time.Now()
	mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		mu.Lock()
		enough := since >= 200
		mu.Unlock()
		if enough {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%d writes within 30s of the database's return, last error %v; want 200", since, lastError)
			break
		}
	}
	close(done)
	writers.Wait()
	if len(r.ended) > 0 {
		t.Fatalf("run ended: %v", <-r.ended)
	}
	if failed[codes.Unavailable] == 0 || len(failed) != 1 {
		t.Errorf("errors by code: %v, last %v; want Unavailable and no other", failed, lastError)
	}
	list, err := c.Get(ctx, "/t/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range list.Kvs {
		delete(kept, string(kv.Key))
	}
	if len(kept) > 0 {
		t.Errorf("%d acknowledged writes are lost: %v", len(kept), kept)
	}
	text := logged.String()
	for _, want := range []string{"the datastore does not answer; requests fail until it does", "the datastore answers again"} {
		if n := strings.Count(text, want); n < 1 || n > 5 {
			t.Errorf("%q is logged %d times; want once or little more:\n%s", want, n, text)
		}
	}
	noSecrets(t, text)
	t.Logf("%d writes failed, %d succeeded after it", failed[codes.Unavailable], since)
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func noSecrets(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{password, passwordEscaped, "hunter2"} {
		if strings.Contains(text, secret) {
			t.Errorf("the password is in %q", text)
		}
	}
}

// messages are what the owner reads while the datastore cannot be used. Run goes
// on trying: each case ends by being asked to stop.
func messages(t *testing.T, d *database) {
	nobodyThere := freePort(t)
	postgres := d.name == "postgresql"
	choose := func(a, b string) string {
		if postgres {
			return a
		}
		return b
	}
	scheme := choose("postgres", "mysql")
	for _, tt := range []struct{ name, endpoint, want string }{
		{"wrong password", d.with("hunter2", d.address), scheme + " at " + d.address + ": the server refuses user \"shop\": " +
			choose("password authentication failed for user \"shop\" (28P01)", "Access denied for user 'shop'@'localhost' (using password: YES) (1045)") +
			"; check user and password, and that the server lets this machine in"},
		{"unreachable", d.with(password, nobodyThere), scheme + " at " + nobodyThere +
			": not reachable: connect: connection refused; check that the server runs and that no firewall is in between"},
		{"no such host", d.with(password, "db.shop.invalid:1"), scheme + " at db.shop.invalid:1" +
			": the name db.shop.invalid cannot be resolved; check the endpoint and this machine's name servers"},
		{"missing database", d.url() + "p", scheme + " at " + d.address + choose(
			": database \"shopp\" does not exist, and user \"shop\" cannot create it: permission denied to create database (42501); create it, or correct the endpoint",
			": user \"shop\" has no right to database \"shopp\": Access denied for user 'shop'@'%' to database 'shopp' (1044)")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			logged := &buffer{}
			said := make(chan string, 10)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			c := Config{Endpoint: tt.endpoint, Status: func(s string) { said <- s }, Ready: func() error { t.Error("ready"); return nil }}
			go func() { ended <- Run(ctx, c, t.TempDir()+"/s", slog.New(slog.NewTextHandler(logged, nil))) }()
			select {
			case got := <-said:
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
				noSecrets(t, got)
			case err := <-ended:
				t.Fatalf("run ended: %v; want it to go on trying", err)
			case <-time.After(20 * time.Second):
				t.Fatal("nothing said within 20s")
			}
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run: %v; want no error", err)
			}
			noSecrets(t, logged.String())
		})
	}
}
