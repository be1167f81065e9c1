package system

import (
	"bytes"
	"context"
	"log"
	"sync"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/reaper"
	"github.com/cairn-os/cairn/pkg/supervise"
)

// TestRestartBound: what is bound to the machine's address starts anew, and nothing else.
func TestRestartBound(t *testing.T) {
	var console bytes.Buffer
	m := &machine{log: log.New(&console, "", 0)}
	m.restartBound() // before the services: nothing to do
	if console.Len() > 0 {
		t.Errorf("without services: %q", console.String())
	}
	r, err := reaper.New()
	if err != nil {
		t.Fatal(err)
	}
	go r.Serve(t.Context())
	var table []supervise.Service
	for _, name := range []string{"store", "control", "node"} {
		table = append(table, supervise.Service{Name: name, Argv: []string{"/bin/sleep", "300"}})
	}
	m.supervisor, err = supervise.New(supervise.Options{Reaper: r, LogDir: t.TempDir(), NotifyDir: t.TempDir(), Logf: m.log.Printf}, table)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.supervisor.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	settled := func(restarts int) bool {
		all := m.supervisor.Status()
		for i, want := range []int{0, restarts, restarts} {
			if all[i].State != string(supervise.Ready) || all[i].Restarts != want {
				return false
			}
		}
		return true
	}
	await := func(restarts int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !settled(restarts); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after %d restarts: %+v", restarts, m.supervisor.Status())
			}
		}
	}
	await(0)
	m.restartBound()
	await(1)
}
