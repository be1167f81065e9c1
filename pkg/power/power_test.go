package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func event(kind, code uint16, value uint32) []byte {
	b := make([]byte, eventSize-8, eventSize)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, code)
	return binary.NativeEndian.AppendUint32(b, value)
}

func TestReadPresses(t *testing.T) {
	stream := bytes.Join([][]byte{
		event(evKey, 30, 1),       // the key A
		event(evKey, keyPower, 1), // pressed
		event(evKey, keyPower, 2), // repeated
		event(evKey, keyPower, 0), // released
		event(0, 0, 0),
		event(4, keyPower, 1), // a scan code
		event(evKey, keyPower, 1),
		{1, 2, 3},
	}, nil)
	n := 0
	if err := readPresses(bytes.NewReader(stream), func() { n++ }); !errors.Is(err, io.EOF) {
		t.Errorf("readPresses() = %v; want EOF", err)
	}
	if n != 2 {
		t.Errorf("%d presses; want 2", n)
	}
}

func TestWatchButtonOfOtherDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "event0")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WatchButton(t.Context(), path, func() {}); !errors.Is(err, ErrNoButton) {
		t.Errorf("WatchButton() = %v; want ErrNoButton", err)
	}
}

func TestParse(t *testing.T) {
	for _, a := range []Action{Reboot, PowerOff} {
		if got, err := Parse(a.String()); got != a || err != nil {
			t.Errorf("Parse(%q) = %v, %v; want %v", a.String(), got, err, a)
		}
	}
	for _, name := range []string{"", "none", "kexec"} {
		if got, err := Parse(name); err == nil {
			t.Errorf("Parse(%q) = %v; want an error", name, got)
		}
	}
}
