package tunnel

import (
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// BenchmarkIdleTunnel measures what a tunnel costs that carries nothing: both of its ends together, with TLS.
func BenchmarkIdleTunnel(b *testing.B) {
	c := newCluster(b, "x", nil)
	const tunnels = 100
	heap := func() (uint64, int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse, runtime.NumGoroutine()
	}
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, goroutines := heap()
	for i := range tunnels {
		c.join(fmt.Sprint("n", i))
	}
	time.Sleep(2 * time.Second)
	after, more := heap()
	b.ReportMetric(float64(after-before)/tunnels/1024, "KiB/tunnel")
	b.ReportMetric(float64(more-goroutines)/tunnels, "goroutines/tunnel")
	begin, used := time.Now(), cpu()
	time.Sleep(20 * time.Second)
	b.ReportMetric(float64(cpu()-used)/float64(time.Since(begin))/tunnels*1e6, "CPU-ppm/tunnel")
}

// BenchmarkThroughput measures one connection.
func BenchmarkThroughput(b *testing.B) {
	c, _, _ := twoNodes(b)
	conn, r := c.upgraded(b, target(b, "127.0.0.3", echo))
	const size = 1 << 20
	b.SetBytes(size)
	for b.Loop() {
		go func() { _, _ = conn.Write(make([]byte, size)) }()
		if _, err := io.CopyN(io.Discard, r, size); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnections measures a new connection with one small request.
func BenchmarkConnections(b *testing.B) {
	c, _, _ := twoNodes(b)
	t := target(b, "127.0.0.3", hello)
	for b.Loop() {
		if _, err := c.get("http://" + t); err != nil {
			b.Fatal(err)
		}
	}
}
