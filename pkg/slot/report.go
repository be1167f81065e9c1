package slot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Stage is how far a boot came.
type Stage string

// The stages, in the order of a boot.
const (
	StageEarly    Stage = "early"    // the initramfs
	StageSystem   Stage = "system"   // the phases on the slot's own root
	StageServices Stage = "services" // the services run; the verdict on their health is cairnd's
)

const (
	reportVersion = "1"
	// maxPhase bounds a phase's name in bytes; what is left of the sector is
	// the error's.
	maxPhase  = 40
	maxBootID = 36 // a UUID's text, as in /proc/sys/kernel/random/boot_id
)

// ErrNoReport says that a report file holds nothing that can be trusted: no
// trial boot has spoken yet, or its write was cut off.
var ErrNoReport = errors.New("no report of a trial boot")

// Report is what a trial boot says of itself, for the boot after it. A slot on
// trial may not reach the data partition, so it is kept beside the slot state,
// in one sector that is overwritten in place. Its zero value is invalid; start
// with State.Report.
type Report struct {
	Seq    int    // of the state that the boot began with
	Slot   Slot   // that booted
	Tries  int    // left in that state
	Stage  Stage  // reached
	Phase  string // that failed, or "" as long as none did
	Error  string // of that phase; Encode cuts it to fit
	BootID string // of the kernel that ran, or ""
}

// Report begins the report of the slot that is on trial in s.
func (s State) Report(stage Stage) Report {
	return Report{Seq: s.Seq, Slot: s.Trial, Tries: s.Tries, Stage: stage}
}

// Check returns an error when r breaks a rule that every report keeps.
func (r Report) Check() error {
	switch {
	case r.Slot != A && r.Slot != B:
		return fmt.Errorf("report: slot %q", r.Slot)
	case r.Seq < 0 || r.Seq > maxSeq:
		return fmt.Errorf("report: sequence number %d", r.Seq)
	case r.Tries < 0 || r.Tries > MaxTries:
		return fmt.Errorf("report: %d tries", r.Tries)
	case r.Stage != StageEarly && r.Stage != StageSystem && r.Stage != StageServices:
		return fmt.Errorf("report: stage %q", r.Stage)
	case len(r.BootID) > maxBootID || strings.Trim(r.BootID, "0123456789abcdef-") != "":
		return fmt.Errorf("report: boot id %q", r.BootID)
	}
	return nil
}

// Of reports whether r was written by a boot of the trial that s has under way
// or has just spent. Where the selector counts, the sequence number is the
// same for all boots of a trial; where the system counts (see State.Count),
// each try that goes makes it one higher.
func (r Report) Of(s State) bool {
	if s.Trial == None || r.Slot != s.Trial || r.Tries < s.Tries {
		return false
	}
	return r.Seq == s.Seq || r.Seq < s.Seq && r.Seq+r.Tries == s.Seq+s.Tries
}

// Last reports whether r was written by the newest boot of the trial in s. When
// an older one wrote it, the newest never came as far as init.
func (r Report) Last(s State) bool { return r.Of(s) && r.Tries == s.Tries }

// String is the report as a sentence for people.
func (r Report) String() string {
	place := map[Stage]string{
		StageEarly: "reached the early stage", StageSystem: "reached its own root", StageServices: "started its services",
	}[r.Stage]
	text := fmt.Sprintf("slot %s, with %d tries left, %s", r.Slot, r.Tries, place)
	switch {
	case r.Phase != "" && r.Error != "":
		return fmt.Sprintf("%s; phase %s failed: %s", text, r.Phase, r.Error)
	case r.Phase != "":
		return fmt.Sprintf("%s; phase %s failed", text, r.Phase)
	case r.Error != "":
		return fmt.Sprintf("%s; it failed: %s", text, r.Error)
	}
	return text
}

// Encode returns r as a GRUB environment block of one sector. Text is made
// printable and cut to fit.
func (r Report) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	r.Phase = fit(printable(r.Phase), maxPhase)
	text := printable(r.Error)
	r.Error = ""
	empty, err := EncodeBlock(Size, r.variables()...)
	if err != nil {
		return nil, err
	}
	r.Error = fit(text, Size-len(bytes.TrimRight(empty, "#")))
	return EncodeBlock(Size, r.variables()...)
}

// variables are the report's, the seal last: a write that was cut off leaves a
// seal that is not that of the rest.
func (r Report) variables() []Variable {
	vars := []Variable{
		{"rv", reportVersion}, {"seq", strconv.Itoa(r.Seq)}, {"slot", string(r.Slot)}, {"tries", strconv.Itoa(r.Tries)},
		{"stage", string(r.Stage)}, {"boot", r.BootID}, {"phase", r.Phase}, {"error", r.Error},
	}
	sum := sha256.New()
	for _, v := range vars {
		fmt.Fprintf(sum, "%s=%q\n", v.Name, v.Value)
	}
	return append(vars, Variable{"seal", fmt.Sprintf("%x", sum.Sum(nil)[:8])})
}

// DecodeReport reads what Encode wrote. Its error is ErrNoReport.
func DecodeReport(data []byte) (Report, error) {
	vars, err := DecodeBlock(data)
	if err != nil {
		return Report{}, fmt.Errorf("%w: no GRUB environment block", ErrNoReport)
	}
	seq, err1 := strconv.Atoi(vars["seq"])
	tries, err2 := strconv.Atoi(vars["tries"])
	if err := errors.Join(err1, err2); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNoReport, err)
	}
	r := Report{
		Seq: seq, Slot: Slot(vars["slot"]), Tries: tries, Stage: Stage(vars["stage"]),
		Phase: vars["phase"], Error: vars["error"], BootID: vars["boot"],
	}
	// Written anew it must be what was read: so the seal holds, the version
	// is known and the text is printable.
	again, err := r.Encode()
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNoReport, err)
	}
	want, err := DecodeBlock(again)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNoReport, err)
	}
	for name, value := range want {
		if vars[name] != value {
			return Report{}, fmt.Errorf("%w: %s is %q; want %q", ErrNoReport, name, vars[name], value)
		}
	}
	return r, nil
}

// printable makes one line of text: what is not printable becomes a space, and
// spaces in a row become one.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// fit cuts text at a rune so that it has at most room bytes when it is encoded,
// where a backslash takes two.
func fit(text string, room int) string {
	const mark = "…"
	used, cut := 0, 0
	for i, r := range text {
		n := utf8.RuneLen(r)
		if r == '\\' {
			n = 2
		}
		if used+n > room {
			return strings.TrimRight(text[:cut], " ") + mark
		}
		if used += n; used <= room-len(mark) {
			cut = i + utf8.RuneLen(r)
		}
	}
	return text
}
