package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

func framed(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func TestWire(t *testing.T) {
	var seen []string
	w := NewWire(func(frame []byte) { seen = append(seen, string(frame)) })
	var ends []*os.File
	for range 3 {
		end, err := w.plug()
		if err != nil {
			t.Fatal(err)
		}
		defer end.Close()
		ends = append(ends, end)
	}
	// In pieces, for a stream keeps no borders.
	sent := append(framed("one"), framed("two")...)
	for _, piece := range [][]byte{sent[:2], sent[2:9], sent[9:]} {
		if _, err := ends[0].Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	for i, end := range ends[1:] {
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(end, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("end %d receives %q, %v; want %q", i+1, got, err, sent)
		}
	}
	// The next that the sender receives is another's frame, not one of its own. One that is gone bothers nobody.
	if err := ends[2].Close(); err != nil {
		t.Fatal(err)
	}
	waitEnds(t, w, 2)
	if _, err := ends[1].Write(framed("three")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(framed("three")))
	if _, err := io.ReadFull(ends[0], got); err != nil || !bytes.Equal(got, framed("three")) {
		t.Errorf("the sender receives %q, %v; want three", got, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(seen) != 3 || seen[0] != "one" || seen[1] != "two" || seen[2] != "three" {
		t.Errorf("the tap saw %q", seen)
	}
}

// TestWireSlowEnd shows that a machine that takes nothing neither stops the others nor grows a queue without end.
func TestWireSlowEnd(t *testing.T) {
	w := NewWire(nil)
	var ends []*os.File
	for range 3 {
		end, err := w.plug()
		if err != nil {
			t.Fatal(err)
		}
		defer end.Close()
		ends = append(ends, end)
	}
	frame := framed(string(make([]byte, 1500)))
	for i := range 2 * wireQueue {
		if _, err := ends[0].Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(ends[1], make([]byte, len(frame))); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
}

// TestWireNonsense unplugs who does not send frames.
func TestWireNonsense(t *testing.T) {
	w := NewWire(nil)
	end, err := w.plug()
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	if _, err := end.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := end.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read of an end that was unplugged: %v; want EOF", err)
	}
	waitEnds(t, w, 0)
}

func waitEnds(t *testing.T, w *Wire, want int) {
	t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.ends)
	}
	for deadline := time.Now().Add(5 * time.Second); count() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d ends on the wire; want %d", count(), want)
		}
	}
}
