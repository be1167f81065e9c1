package join

import (
	"errors"
	"fmt"
	"time"
)

// Code names the reason of a Refusal; it is part of the protocol.
type Code string

// The reasons.
const (
	CodeConfig   Code = "config"   // the machine's own configuration is incomplete or contradicts itself
	CodeCA       Code = "ca"       // the server shows another CA than the token names
	CodeToken    Code = "token"    // unknown, revoked, or with another secret
	CodeExpired  Code = "expired"  // the token's time is over
	CodeUsed     Code = "used"     // a one-time token that another machine used
	CodeRole     Code = "role"     // the token, or the name's owner, does not allow the role
	CodeName     Code = "name"     // a node that is alive has the name
	CodeAddress  Code = "address"  // a node that is alive has the address
	CodeVersion  Code = "version"  // Kubernetes here is newer than the servers', or the protocols differ
	CodeSettings Code = "settings" // the configuration contradicts the cluster's settings
	CodeRemoved  Code = "removed"  // the node was removed from the cluster
	CodeIdentity Code = "identity" // the name belongs to another machine
	CodeRequest  Code = "request"  // the server cannot make sense of the request

	// Reasons that pass by themselves; they do not become a Refusal.
	codeClock       Code = "clock"
	codeLimited     Code = "limited"
	codeUnavailable Code = "unavailable"
)

// Refusal is an error that only a person can clear, on this machine or in the cluster. Its text says how. All other
// errors of this package may pass by themselves.
type Refusal struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

func (r *Refusal) Error() string { return r.Text }

func refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// IsRefusal reports whether err needs a person.
func IsRefusal(err error) bool {
	var r *Refusal
	return errors.As(err, &r)
}

// later is an error that passes, not before some time.
type later struct {
	error
	after time.Duration
}

func (l *later) Unwrap() error { return l.error }
