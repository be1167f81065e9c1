package clock

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server answers NTP (RFC 5905) on a local port with a clock that is off by the given time.
func server(t *testing.T, off time.Duration) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, peer, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := time.Now().Add(off)
			res := make([]byte, 48)
			res[0], res[1], res[2], res[3] = 0x24, 2, 6, 0xec // version 4, server, stratum 2
			copy(res[12:16], []byte{192, 0, 2, 1})
			stamp(res[16:24], now.Add(-time.Minute))
			copy(res[24:32], buf[40:48]) // originate = the client's transmit
			stamp(res[32:40], now)
			stamp(res[40:48], now)
			if _, err := conn.WriteTo(res, peer); err != nil {
				return
			}
		}
	}()
	return conn.LocalAddr().String()
}

func stamp(b []byte, t time.Time) {
	const to1970 = 2208988800
	binary.BigEndian.PutUint32(b, uint32(t.Unix()+to1970))
	binary.BigEndian.PutUint32(b[4:], uint32((uint64(t.Nanosecond())<<32)/1e9))
}

// kernel stands in for adjtimex.
type kernel struct {
	mu    sync.Mutex
	calls []unix.Timex
}

func (k *kernel) adjust(tx *unix.Timex) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, *tx)
	return 0, nil
}

func newTestClock(t *testing.T, servers ...string) (*Clock, *kernel) {
	k := &kernel{}
	return New(Options{Servers: servers, Log: slog.New(slog.DiscardHandler), Adjust: k.adjust}), k
}

func TestMeasureTakesTheMedian(t *testing.T) {
	c, _ := newTestClock(t, server(t, 10*time.Second), server(t, time.Hour), server(t, 11*time.Second), "127.0.0.1:1")
	s, err := c.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := s.offset - 11*time.Second; d.Abs() > 500*time.Millisecond {
		t.Errorf("offset %s; want the middle one, 11s", s.offset)
	}
}

func TestMeasureWithoutServer(t *testing.T) {
	c, _ := newTestClock(t, "127.0.0.1:1")
	if s, err := c.measure(t.Context()); err == nil {
		t.Errorf("measure() = %+v; want an error", s)
	}
}

// TestCorrect: unix.NsecToTimeval rounds up to the next microsecond.
func TestCorrect(t *testing.T) {
	tests := []struct {
		name     string
		offset   time.Duration
		mayStep  bool
		doubtful bool
		mode     uint32 // of the first call; 0: no call
		tv       unix.Timeval
	}{
		{name: "first, far ahead", offset: 3500 * time.Millisecond, mayStep: true, mode: unix.ADJ_SETOFFSET, tv: unix.Timeval{Sec: 3, Usec: 500_000}},
		{name: "first, far behind", offset: -1500 * time.Millisecond, mayStep: true, mode: unix.ADJ_SETOFFSET, tv: unix.Timeval{Sec: -2, Usec: 500_001}},
		{name: "later, far off", offset: time.Hour, doubtful: true},
		{name: "small", offset: 40 * time.Millisecond, mayStep: true, mode: unix.ADJ_OFFSET_SINGLESHOT},
		{name: "small and behind", offset: -time.Second, mode: unix.ADJ_OFFSET_SINGLESHOT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, k := newTestClock(t)
			doubtful, err := c.correct(sample{offset: tt.offset, err: 20 * time.Millisecond}, tt.mayStep)
			if err != nil || doubtful != tt.doubtful {
				t.Fatalf("correct() = %v, %v; want %v", doubtful, err, tt.doubtful)
			}
			if tt.mode == 0 {
				if len(k.calls) != 0 {
					t.Errorf("the clock was touched: %+v", k.calls)
				}
				return
			}
			if len(k.calls) != 2 || k.calls[0].Modes != tt.mode || k.calls[0].Time != tt.tv {
				t.Fatalf("calls %+v; want mode %#x with %+v first", k.calls, tt.mode, tt.tv)
			}
			if want := tt.offset.Microseconds(); tt.mode == unix.ADJ_OFFSET_SINGLESHOT && int64(k.calls[0].Offset) != want {
				t.Errorf("slewed by %d µs; want %d", k.calls[0].Offset, want)
			}
			if last := k.calls[1]; last.Modes&unix.ADJ_STATUS == 0 || last.Status&unix.STA_UNSYNC != 0 || last.Maxerror != 20_000 {
				t.Errorf("the kernel was not told that the clock is right: %+v", last)
			}
		})
	}
}

func TestRunSynchronises(t *testing.T) {
	c, k := newTestClock(t, server(t, time.Minute))
	synced := make(chan struct{}, 1)
	c.opt.Synced = synced
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { c.Run(ctx) })
	for deadline := time.Now().Add(20 * time.Second); !c.Status().Synchronized && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	if st := c.Status(); !st.Synchronized || st.OffsetS < 59 || st.OffsetS > 61 {
		t.Errorf("Status() = %+v", st)
	}
	if len(k.calls) == 0 || k.calls[0].Modes != unix.ADJ_SETOFFSET {
		t.Errorf("calls %+v; want a step", k.calls)
	}
	if len(synced) != 1 {
		t.Error("nobody was told that the clock is right")
	}
}
