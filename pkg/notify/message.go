package notify

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Message is one datagram of sd_notify(3), reduced to what the supervisor acts on. Unknown assignments are ignored, as
// the protocol demands.
type Message struct {
	Ready     bool
	Stopping  bool
	Watchdog  bool
	Status    string // free text for people; control characters are removed
	HasStatus bool   // a STATUS= was there, possibly empty
	PID       int    // of the sender, as the kernel vouches for it; 0 when parsed without a socket
}

// ErrMalformed is wrapped by the errors of Parse.
var ErrMalformed = errors.New("malformed notification")

// maxDatagram bounds a notification. systemd takes 4 KiB as well.
const maxDatagram = 4096

// maxStatus bounds the text of STATUS=, in bytes.
const maxStatus = 256

// Parse reads a notification: newline-separated NAME=VALUE assignments.
func Parse(data []byte) (Message, error) {
	if len(data) == 0 {
		return Message{}, fmt.Errorf("%w: empty", ErrMalformed)
	}
	if len(data) > maxDatagram {
		return Message{}, fmt.Errorf("%w: %d bytes, at most %d are taken", ErrMalformed, len(data), maxDatagram)
	}
	if !utf8.Valid(data) {
		return Message{}, fmt.Errorf("%w: not UTF-8", ErrMalformed)
	}
	var m Message
	for line := range strings.SplitSeq(string(data), "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" {
			return Message{}, fmt.Errorf("%w: %.40q is no assignment", ErrMalformed, line)
		}
		switch name {
		case "READY":
			m.Ready = m.Ready || value == "1"
		case "STOPPING":
			m.Stopping = m.Stopping || value == "1"
		case "WATCHDOG":
			m.Watchdog = m.Watchdog || value == "1"
		case "STATUS":
			m.Status, m.HasStatus = printable(value), true
		}
	}
	return m, nil
}

// printable drops control characters, because the text reaches consoles, and cuts it to maxStatus at a rune's border.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
	if len(s) <= maxStatus {
		return s
	}
	cut := maxStatus
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}
