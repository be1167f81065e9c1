package storetest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/prometheus/procfs"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkUpdate is the update of pods of 1.5 kB, among 3,000 of them, by
// 1, 8 and 64 clients, with one watch and a compaction every 5,000 revisions.
// It reports writes per second, this process's memory, what lies on disk and
// what was sent there. open returns a client of a new store and its directory.
func BenchmarkUpdate(b *testing.B, open func(b *testing.B) (*clientv3.Client, string)) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			client, dir := open(b)
			benchmarkUpdate(b, client, dir, clients)
		})
	}
}

func benchmarkUpdate(b *testing.B, client *clientv3.Client, dir string, clients int) {
	const keys = 3000
	ctx := b.Context()
	watch := client.Watch(ctx, "/b/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	<-watch
	go func() {
		for range watch { // What is not taken, the client keeps in memory.
		}
	}()
	before := written(b)
	var next atomic.Int64
	b.ResetTimer()
	worker := func(i int64) error {
		key := fmt.Sprintf("/b/%04d", i%keys)
		resp, err := client.Put(ctx, key, Object(i%keys, i/keys))
		if err != nil {
			return err
		}
		if resp.Header.Revision%5000 == 0 {
			_, err = client.Compact(ctx, resp.Header.Revision-1000)
		}
		return err
	}
	done := make(chan error, clients)
	for range clients {
		go func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					done <- nil
					return
				}
				if err := worker(i); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	b.ReportMetric(float64(statm(b))/1e6, "MB-resident")
	b.ReportMetric(float64(size(b, dir))/1e6, "MB-on-disk")
	b.ReportMetric(float64(written(b)-before)/float64(b.N), "bytes-written/op")
}

// written returns the bytes that this process has sent to disks.
func written(b *testing.B) int64 {
	self, err := procfs.Self()
	if err != nil {
		b.Fatal(err)
	}
	io, err := self.IO()
	if err != nil {
		b.Fatal(err)
	}
	return int64(io.WriteBytes)
}

// statm returns the resident bytes of this process.
func statm(b *testing.B) int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

func size(b *testing.B, dir string) (n int64) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		n += info.Size()
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
