//go:build cgo

package main

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// record keeps what is written to it.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// TestNoValuesInLog lets requests fail that carry a secret: kine would log
// them as a whole.
func TestNoValuesInLog(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	log := &record{}
	logrus.SetOutput(log) // what run should change
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--debug", "--config", "absent", "--dir", filepath.Join(dir, "data"), "--socket", socket}, terminal{err: log})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 20 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const value = "a-value-nobody-may-read"
	if _, err := c.Put(t.Context(), "/t/a", "1"); err != nil {
		t.Fatal(err)
	}
	// Two writes in one transaction are more than kine's front knows.
	if _, err := c.Txn(t.Context()).Then(clientv3.OpPut("/t/b", value), clientv3.OpPut("/t/c", value)).Commit(); err == nil {
		t.Fatal("a transaction of two writes succeeded: the test did not test")
	}
	if text := log.String(); strings.Contains(text, value) || !strings.Contains(text, slog.LevelInfo.String()) {
		t.Errorf("log:\n%s\nwant messages, and none with the value of the request", text)
	}
}
