package member

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func encodeGreeting(id uint64, name string) []byte {
	data := binary.LittleEndian.AppendUint64(nil, protocolVersion)
	data = binary.LittleEndian.AppendUint32(data, greetingWords)
	data = append(data, requestConnect, 0, 0, 0)
	data = binary.LittleEndian.AppendUint64(data, id)
	data = append(data, name...)
	return append(data, make([]byte, max(0, greetingSize-len(data)))...)
}

func TestGreeting(t *testing.T) {
	const id = 0xabc
	if got, err := parseGreeting(encodeGreeting(id, Name(id))); got != id || err != nil {
		t.Errorf("parseGreeting = %x, %v; want %x", got, err, id)
	}
	for what, change := range map[string]func(data []byte) []byte{
		"client":          func(d []byte) []byte { d[12] = 3; return d },
		"legacy protocol": func(d []byte) []byte { d[0] = 0xe1; return d },
		"other schema":    func(d []byte) []byte { d[13] = 1; return d },
		"longer":          func(d []byte) []byte { d[8]++; return d },
		"other id":        func(d []byte) []byte { d[greetingHead]++; return d },
		"no name":         func([]byte) []byte { return encodeGreeting(id, "") },
		"network address": func([]byte) []byte { return encodeGreeting(id, "10.0.0.1:9000") },
		"no end of name":  func([]byte) []byte { return encodeGreeting(id, Name(id)+"x") },
		"cut":             func(d []byte) []byte { return d[:greetingSize-1] },
	} {
		if got, err := parseGreeting(change(encodeGreeting(id, Name(id)))); err == nil {
			t.Errorf("%s: parseGreeting = %x; want an error", what, got)
		}
	}
}

// TestReadGreeting binds a greeting to who is known to have opened the connection.
func TestReadGreeting(t *testing.T) {
	const own, leader = 0xabc, 0xdef
	for _, tt := range []struct {
		name         string
		from, greets uint64
		want         string // in the error
	}{
		{"itself", own, own, ""},
		{"as the leader", own, leader, "member-0000000000000abc greets as member-0000000000000def"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBridges()
			defer b.close()
			sender, conn := net.Pipe()
			defer sender.Close()
			defer conn.Close()
			greeting := encodeGreeting(tt.greets, Name(tt.greets))
			go sender.Write(greeting)
			got, err := b.readGreeting(conn, tt.from)
			if tt.want == "" && (err != nil || string(got) != string(greeting)) {
				t.Errorf("readGreeting = %x, %v; want what was sent", got, err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("readGreeting = %v; want %q", err, tt.want)
			}
		})
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add(encodeGreeting(1, Name(1)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := parseGreeting(data)
		if err == nil && string(append(encodeGreeting(id, Name(id))[:14], data[14:]...)) != string(data) {
			t.Errorf("parseGreeting(%x) = %x", data, id)
		}
	})
}

// TestBridge carries bytes, ends with either side, and gives up on a side
// that takes nothing.
func TestBridge(t *testing.T) {
	for _, end := range []string{"sender", "receiver", "close", "stall"} {
		t.Run(end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBridges()
				sender, from := net.Pipe()
				receiver, to := net.Pipe()
				b.run(func() { b.carry(to, from) })
				if _, err := sender.Write([]byte("message")); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 7)
				if _, err := io.ReadFull(receiver, got); err != nil || string(got) != "message" {
					t.Fatalf("received %q, %v", got, err)
				}
				start := time.Now()
				switch end {
				case "sender":
					sender.Close()
				case "receiver":
					receiver.Close()
				case "close":
					go b.close()
				case "stall": // Nobody reads from receiver.
					if _, err := sender.Write([]byte("message")); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if end == "stall" {
					time.Sleep(stallLimit)
					synctest.Wait()
				}
				for _, side := range []net.Conn{sender, receiver} {
					if _, err := side.Read(got); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
						t.Errorf("after the end: %v; want EOF", err)
					}
				}
				if took := time.Since(start); end != "stall" && took != 0 {
					t.Errorf("ended after %v", took)
				}
				b.close()
			})
		})
	}
}
