package slot

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

var failed = Report{
	Seq: 6, Slot: B, Tries: 2, Stage: StageSystem, Phase: "data", Error: "mount /var: no such device",
	BootID: "6f1b7c1e-51f5-4f0f-9d2e-0a4b8a5f1c33",
}

func encodeReport(t testing.TB, r Report) []byte {
	t.Helper()
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != Size {
		t.Fatalf("encoded %v in %d bytes", r, len(data))
	}
	return data
}

func TestReportRoundTrip(t *testing.T) {
	state := State{Seq: 6, Confirmed: A, Trial: B, Tries: 2}
	for _, r := range []Report{failed, state.Report(StageEarly), state.Report(StageServices), {maxSeq, A, 9, StageEarly, "", "a=b\\c #\"", ""}} {
		if got, err := DecodeReport(encodeReport(t, r)); err != nil || got != r {
			t.Errorf("%v comes back as %v, %v", r, got, err)
		}
	}
	for _, r := range []Report{
		{}, {Seq: 1, Slot: None, Stage: StageEarly}, {Seq: 1, Slot: B, Stage: "late"}, {Seq: -1, Slot: B, Stage: StageEarly},
		{Seq: 1, Slot: B, Tries: 10, Stage: StageEarly}, {Seq: 1, Slot: B, Stage: StageEarly, BootID: "x"},
		State{Seq: 1, Confirmed: A, Trial: None}.Report(StageEarly),
	} {
		if data, err := r.Encode(); err == nil {
			t.Errorf("encoded %v: %q", r, data)
		}
	}
}

func TestReportText(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"lines", "one\ntwo\r\n\tthree\x00\x1b[31m four", "one two three [31m four"},
		{"broken", "a\xff\xfeb", "a b"},
		{"long", strings.Repeat("x", 2000), ""},
		{"long runes", strings.Repeat("ü", 2000), ""},
		{"long backslashes", strings.Repeat(`\`, 2000), ""},
		{"nearly too long", strings.Repeat("word ", 80), ""},
	} {
		r := failed
		r.Phase, r.Error = tt.text, tt.text
		got, err := DecodeReport(encodeReport(t, r))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if tt.want != "" && got.Error != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got.Error, tt.want)
		}
		if tt.want == "" && (!strings.HasSuffix(got.Error, "…") || len(got.Error) < 120 || len(got.Phase) > maxPhase) {
			t.Errorf("%s: phase %q, error %q", tt.name, got.Phase, got.Error)
		}
		if again, err := DecodeReport(encodeReport(t, got)); err != nil || again != got {
			t.Errorf("%s: encoded again: %v, %v; want %v", tt.name, again, err, got)
		}
	}
}

// TestReportTorn cuts the write of one report over another at every byte.
func TestReportTorn(t *testing.T) {
	next := failed
	next.Tries, next.Stage, next.Phase, next.Error = 1, StageEarly, "", ""
	for _, under := range [][]byte{encodeReport(t, failed), make([]byte, Size), nil} {
		over := encodeReport(t, next)
		for n := range Size + 1 {
			torn := append(bytes.Clone(over[:n]), under[min(n, len(under)):]...)
			got, err := DecodeReport(torn)
			switch {
			case err != nil && !errors.Is(err, ErrNoReport):
				t.Errorf("cut at %d: %v", n, err)
			case err == nil && got != next && got != failed:
				t.Errorf("cut at %d: a report that none wrote: %v", n, got)
			}
		}
	}
}

func TestReportOf(t *testing.T) {
	grub := State{Seq: 6, Confirmed: A, Trial: B, Tries: 1}
	for _, tt := range []struct {
		name     string
		r        Report
		s        State
		of, last bool
	}{
		{"this boot", Report{Seq: 6, Slot: B, Tries: 1}, grub, true, true},
		{"the boot before", Report{Seq: 6, Slot: B, Tries: 2}, grub, true, false},
		{"a boot to come", Report{Seq: 6, Slot: B, Tries: 0}, grub, false, false},
		{"the trial before", Report{Seq: 4, Slot: B, Tries: 2}, grub, false, false},
		{"of the other slot", Report{Seq: 6, Slot: A, Tries: 1}, grub, false, false},
		{"nothing on trial", Report{Seq: 6, Slot: B, Tries: 1}, onA, false, false},
		{"counted by the system, this boot", Report{Seq: 8, Slot: B, Tries: 1}, State{8, A, B, 1}, true, true},
		{"counted by the system, the boot before", Report{Seq: 7, Slot: B, Tries: 2}, State{8, A, B, 1}, true, false},
	} {
		if of, last := tt.r.Of(tt.s), tt.r.Last(tt.s); of != tt.of || last != tt.last {
			t.Errorf("%s: of %v, last %v; want %v, %v", tt.name, of, last, tt.of, tt.last)
		}
	}
}

func TestReportString(t *testing.T) {
	want := "slot b, with 2 tries left, reached its own root; phase data failed: mount /var: no such device"
	if got := failed.String(); got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(encodeReport(f, failed))
	f.Add(encodeReport(f, State{Seq: 6, Confirmed: A, Trial: B, Tries: 2}.Report(StageEarly)))
	f.Add([]byte(signature + "rv=1\nslot=b\\\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeReport(data)
		if err != nil {
			if !errors.Is(err, ErrNoReport) {
				t.Errorf("error %v; want ErrNoReport", err)
			}
			return
		}
		if again, err := DecodeReport(encodeReport(t, r)); err != nil || again != r {
			t.Errorf("decoded %v again as %v, %v", r, again, err)
		}
		for _, c := range r.Phase + r.Error {
			if c == utf8.RuneError || !unicode.IsPrint(c) {
				t.Errorf("%q of %v is not printable", c, r)
			}
		}
	})
}

// FuzzReportText encodes any text.
func FuzzReportText(f *testing.F) {
	f.Add("data", "mount: no such device")
	f.Add("\\\\", "\x00\n=\\")
	f.Fuzz(func(t *testing.T, phase, text string) {
		r := failed
		r.Phase, r.Error = phase, text
		if _, err := DecodeReport(encodeReport(t, r)); err != nil {
			t.Errorf("phase %q, error %q: %v", phase, text, err)
		}
	})
}
