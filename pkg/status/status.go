// Package status holds the values in which a node describes itself: slot, release, boot phases, supervised processes,
// addresses and the Kubernetes node. The JSON field names are a stable interface of cairnctl and the admin API:
// fields may be added, never renamed.
package status

import (
	"encoding/json"
	"fmt"
	"time"
)

// Status is everything a node tells about itself at one moment. Parts whose source is not available are left zero:
// init alone knows nothing of Kubernetes, so Node is nil when cairnd is down, and on a witness, which is none.
type Status struct {
	Hostname  string    `json:"hostname"`
	Role      string    `json:"role,omitempty"`   // server, agent or witness; a witness has no Node
	Server    string    `json:"server,omitempty"` // host:port of the server that the machine joins by; empty on the first
	Slot      Slot      `json:"slot"`
	Trial     *Trial    `json:"trial,omitempty"` // nil unless the running slot is on trial
	Release   Release   `json:"release"`
	UptimeS   Seconds   `json:"uptime_s"`
	Phases    []Phase   `json:"phases"`
	Processes []Process `json:"processes"`
	Addresses []Address `json:"addresses"`
	Node      *Node     `json:"node,omitempty"`
	Clock     *Clock    `json:"clock,omitempty"`
	Timeline  []Mark    `json:"timeline"`
	Watchdog  *Watchdog `json:"watchdog,omitempty"` // nil when the machine has none, or none that is armed
}

// MarshalJSON writes empty lists as [], never as null, for the sake of scripts.
func (s Status) MarshalJSON() ([]byte, error) {
	type plain Status // without this method
	p := plain(s)
	p.Phases = append([]Phase{}, s.Phases...)
	p.Processes = append([]Process{}, s.Processes...)
	p.Addresses = append([]Address{}, s.Addresses...)
	p.Timeline = append([]Mark{}, s.Timeline...)
	return json.Marshal(p)
}

// Slot names the release slot that booted and how far it is trusted.
type Slot struct {
	Name  string    `json:"name"` // "a" or "b"; empty when the node has no slots (container mode)
	State SlotState `json:"state"`
}

// SlotState says whether the running slot was confirmed.
type SlotState string

// The states of a running slot. SlotUnknown is reported where no boot selector exists.
const (
	SlotConfirmed SlotState = "confirmed"
	SlotTrial     SlotState = "trial"
	SlotUnknown   SlotState = "unknown"
)

// Trial is what is left to a slot on trial.
type Trial struct {
	TriesLeft int     `json:"tries_left"` // boots after this one
	DeadlineS Seconds `json:"deadline_s"` // since power-on, like UptimeS: not confirmed by then, init goes back
}

// Watchdog is the hardware that resets the machine when init does not feed it.
type Watchdog struct {
	Name     string  `json:"name,omitempty"` // as its driver calls it
	TimeoutS Seconds `json:"timeout_s"`
	// CausedReset says that it is what last reset the machine: the boot before this one ended in a hang. Many drivers
	// do not know, Intel's among them, so that false says nothing.
	CausedReset bool `json:"caused_reset"`
}

// Release is the version of the running root. Its fields are release.Info's, so one converts to the other.
type Release struct {
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	Kernel     string `json:"kernel"`
	BuildTime  int64  `json:"build_time"` // seconds since the epoch
}

// Phase is one finished boot phase.
type Phase struct {
	Name      string  `json:"name"`
	StartS    Seconds `json:"start_s"` // since power-on as the kernel counts it
	DurationS Seconds `json:"duration_s"`
	Skipped   bool    `json:"skipped,omitempty"` // its condition did not hold
	Error     string  `json:"error,omitempty"`
}

// Process is one supervised process.
type Process struct {
	Name     string  `json:"name"`
	State    string  `json:"state"` // a supervise.State
	PID      int     `json:"pid,omitempty"`
	Restarts int     `json:"restarts"`
	StartedS Seconds `json:"started_s,omitempty"` // last start, since power-on
	ReadyS   Seconds `json:"ready_s,omitempty"`   // when the running instance became ready, since power-on
	LastExit string  `json:"last_exit,omitempty"`
	Message  string  `json:"message,omitempty"` // what the process said by STATUS=
	// RSSBytes is the main process's resident memory; GroupBytes and GroupPeakBytes are those of its cgroup, page
	// cache and children included, where cgroup v2 is there.
	RSSBytes       int64  `json:"rss_bytes,omitempty"`
	GroupBytes     int64  `json:"group_bytes,omitempty"`
	GroupPeakBytes int64  `json:"group_peak_bytes,omitempty"`
	Log            string `json:"log,omitempty"` // path of its log file
}

// Address is one address of a network link, in CIDR form.
type Address struct {
	Link   string `json:"link"`
	Prefix string `json:"prefix"`
}

// Node is the Kubernetes node object as the API server shows it.
type Node struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason"` // of the Ready condition, or why it could not be read
	// Message is the condition's human text.
	Message string `json:"message,omitempty"`
	Version string `json:"version,omitempty"` // the kubelet's
}

// Clock is the state of the time synchronisation.
type Clock struct {
	Synchronized bool    `json:"synchronized"` // by a server since boot: the time can be trusted
	Server       string  `json:"server,omitempty"`
	OffsetS      Seconds `json:"offset_s"` // the last one measured, before its correction
	Error        string  `json:"error,omitempty"`
}

// Mark is a named moment of the boot's timeline.
type Mark struct {
	Name string  `json:"name"`
	AtS  Seconds `json:"at_s"` // since power-on
}

// Seconds is a duration that JSON shows as a number of seconds with millisecond precision.
type Seconds float64

// InSeconds converts d, rounded to a millisecond.
func InSeconds(d time.Duration) Seconds {
	return Seconds(float64(d.Round(time.Millisecond).Milliseconds()) / 1000)
}

// Duration is the inverse of InSeconds.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// String prints as people read times: 38ms, 2.41s, 71.3s.
func (s Seconds) String() string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.0fms", float64(s)*1000)
	case s < 10:
		return fmt.Sprintf("%.2fs", float64(s))
	default:
		return fmt.Sprintf("%.1fs", float64(s))
	}
}
