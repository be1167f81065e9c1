package notify

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tests := []struct {
		in   string
		want Message
		bad  bool
	}{
		{in: "READY=1", want: Message{Ready: true}},
		{in: "READY=1\nSTATUS=serving on 6443\n", want: Message{Ready: true, Status: "serving on 6443", HasStatus: true}},
		{in: "READY=0", want: Message{}},
		{in: "STOPPING=1", want: Message{Stopping: true}},
		{in: "WATCHDOG=1\nMAINPID=12\nFDSTORE=1", want: Message{Watchdog: true}},
		{in: "STATUS=\x1b[31mred\x07", want: Message{Status: "[31mred", HasStatus: true}},
		{in: "STATUS=" + strings.Repeat("é", 200), want: Message{Status: strings.Repeat("é", 128), HasStatus: true}},
		{in: "", bad: true},
		{in: "READY", bad: true},
		{in: "=1", bad: true},
		{in: "STATUS=\xff", bad: true},
		{in: "STATUS=" + strings.Repeat("x", maxDatagram), bad: true},
	}
	for _, tt := range tests {
		got, err := Parse([]byte(tt.in))
		if (err != nil) != tt.bad || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse(%.40q) error = %v; want an error: %v", tt.in, err, tt.bad)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" && !tt.bad {
			t.Errorf("Parse(%.40q) (-want +got):\n%s", tt.in, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=ok\nMAINPID=4"))
	f.Add([]byte("=\n\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			if m != (Message{}) {
				t.Errorf("a message beside the error %v: %+v", err, m)
			}
			return
		}
		if len(m.Status) > maxStatus || !utf8.ValidString(m.Status) || strings.ContainsAny(m.Status, "\x00\x1b\n\r") {
			t.Errorf("unfit status %q", m.Status)
		}
	})
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/store.sock", nil, 0o600); err != nil { // a left-over is replaced
		t.Fatal(err)
	}
	s, err := Listen(dir, "store")
	if err != nil {
		t.Fatal(err)
	}
	got, bad := make(chan Message, 4), make(chan error, 4)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Serve(func(m Message) { got <- m }, func(err error) { bad <- err })
	}()

	conn, err := net.Dial("unixgram", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, bad); !errors.Is(err, ErrMalformed) {
		t.Errorf("bad(%v); want malformed", err)
	}
	// The client library that the services use.
	t.Setenv("NOTIFY_SOCKET", s.Path())
	if sent, err := daemon.SdNotify(false, daemon.SdNotifyReady); !sent || err != nil {
		t.Fatalf("SdNotify() = %v, %v", sent, err)
	}
	if m, want := receive(t, got), (Message{Ready: true, PID: os.Getpid()}); m != want {
		t.Errorf("received %+v; want %+v", m, want)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("Serve did not end at Close")
	}
	if _, err := os.Stat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was received")
		panic("unreachable")
	}
}
