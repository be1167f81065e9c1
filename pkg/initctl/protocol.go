// Package initctl is the control channel of PID 1: how cairnd and cairnctl ask init for its status, and tell it to
// restart a process or to reboot, or that the running slot was confirmed.
//
// The protocol is JSON lines over a unix stream socket: the client sends one request line, the server answers with one
// line and closes. It is this small on purpose, because the server lives in PID 1. Only root is served: the socket is
// 0600 and the peer's credentials are checked.
package initctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cairn-os/cairn/pkg/status"
)

// Path is init's control socket.
const Path = "/run/cairn/init.sock"

// Verb is what a request asks for.
type Verb string

// The verbs. Those on a process need its name.
const (
	VerbStatus   Verb = "status"
	VerbStart    Verb = "start"
	VerbStop     Verb = "stop"
	VerbRestart  Verb = "restart"
	VerbReboot   Verb = "reboot"
	VerbPowerOff Verb = "poweroff"
	VerbAnnounce Verb = "announce" // prints a line on the console
	// VerbConfirm says that the running slot was confirmed, which ends the deadline of its trial. init reads the slot
	// state itself and believes only that.
	VerbConfirm Verb = "confirm"
)

// Request is one line from the client.
type Request struct {
	Verb    Verb   `json:"verb"`
	Process string `json:"process,omitempty"` // for start, stop and restart
	Text    string `json:"text,omitempty"`    // for announce
	Mark    string `json:"mark,omitempty"`    // for announce: also a mark of this name in the status's timeline
}

// response is the line that answers. Error is empty on success.
type response struct {
	Error  string         `json:"error,omitempty"`
	Status *status.Status `json:"status,omitempty"`
}

const (
	maxRequest  = 4 << 10 // bytes of a request line
	maxResponse = 1 << 20
	maxText     = 512
	maxName     = 64
)

// ErrRequest is wrapped by the errors of ParseRequest.
var ErrRequest = errors.New("bad request")

// ParseRequest reads one request line. Unknown fields, trailing data and verbs without their argument are errors.
func ParseRequest(line []byte) (Request, error) {
	if len(line) > maxRequest {
		return Request{}, fmt.Errorf("%w: longer than %d bytes", ErrRequest, maxRequest)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var req Request
	if err := dec.Decode(&req); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Request{}, fmt.Errorf("%w: data after the request", ErrRequest)
	}
	return req, req.check()
}

func (r Request) check() error {
	var process, text bool
	switch r.Verb {
	case VerbStatus, VerbReboot, VerbPowerOff, VerbConfirm:
	case VerbStart, VerbStop, VerbRestart:
		process = true
	case VerbAnnounce:
		text = true
	default:
		return fmt.Errorf("%w: unknown verb %.40q", ErrRequest, r.Verb)
	}
	switch {
	case process != (r.Process != ""):
		return fmt.Errorf("%w: verb %s with process %.40q", ErrRequest, r.Verb, r.Process)
	case text != (r.Text != ""):
		return fmt.Errorf("%w: verb %s with text %.40q", ErrRequest, r.Verb, r.Text)
	case r.Mark != "" && !text:
		return fmt.Errorf("%w: verb %s with mark %.40q", ErrRequest, r.Verb, r.Mark)
	case len(r.Process) > maxName || len(r.Mark) > maxName || len(r.Text) > maxText:
		return fmt.Errorf("%w: argument too long", ErrRequest)
	}
	for _, c := range r.Process + r.Text + r.Mark {
		if c < 0x20 || c >= 0x7f && c < 0xa0 { // it is printed on consoles
			return fmt.Errorf("%w: control character in argument", ErrRequest)
		}
	}
	return nil
}
