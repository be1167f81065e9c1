package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrWrongMember says that an address belongs to another member than the one
// that was called.
var ErrWrongMember = errors.New("wrong member")

// ErrSelf says that who answered has this member's own ID: the address is this
// member's own, or a copy of its data directory runs elsewhere.
var ErrSelf = errors.New("this member's own ID")

// status is the acceptor's answer to a preamble.
type status byte

const (
	statusWelcome status = 0
	statusWrong   status = 1 // the target is another member
	statusSelf    status = 2 // the dialer has the acceptor's ID
	statusInvalid status = 3 // the dialer has no ID
	statusRefused status = 4 // the dialer's certificate is not one for this protocol, or not for the ID that it tells
)

const (
	callSize   = 16
	answerSize = 9
)

// call is what the dialer sends first.
type call struct{ target, from uint64 }

func (c call) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.target), c.from)
}

// readCall reads a call and nothing behind it.
func readCall(r io.Reader) (call, error) {
	var b [callSize]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		return call{}, fmt.Errorf("read the preamble (%d of %d bytes came): %w", n, callSize, err)
	}
	return call{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, nil
}

// judge is what the member id answers to a call.
func (c call) judge(id uint64) status {
	switch {
	case c.from == 0:
		return statusInvalid
	case c.from == id:
		return statusSelf
	case c.target != 0 && c.target != id:
		return statusWrong
	}
	return statusWelcome
}

// answer is what the acceptor sends first.
type answer struct {
	status status
	id     uint64
}

func (a answer) bytes() []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(a.status)}, a.id)
}

func readAnswer(r io.Reader) (answer, error) {
	var b [answerSize]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		return answer{}, fmt.Errorf("read the answer to the preamble (%d of %d bytes came): %w", n, answerSize, err)
	}
	return answer{status(b[0]), binary.BigEndian.Uint64(b[1:])}, nil
}

// check says what is wrong with the answer to c.
func (a answer) check(c call) error {
	switch {
	case a.status == statusSelf || a.id == c.from:
		return fmt.Errorf("%w: the address is its own, or a copy of its data directory runs there", ErrSelf)
	case a.status == statusWrong || c.target != 0 && a.id != c.target:
		return fmt.Errorf("%w: the address belongs to %s, not to %s", ErrWrongMember, name(a.id), name(c.target))
	case a.status == statusRefused:
		return fmt.Errorf("%w by %s: this member's certificate does not allow it; that member's log says why", ErrRefused, name(a.id))
	case a.status != statusWelcome:
		return fmt.Errorf("%s refused the connection with status %d", name(a.id), a.status)
	case a.id == 0:
		return errors.New("the answer to the preamble holds no member ID")
	}
	return nil
}

// name is the member's name in raft's configuration, in logs and errors.
func name(id uint64) string { return fmt.Sprintf("member-%016x", id) }
