package slot

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	onA    = State{Seq: 5, Confirmed: A, Trial: None}
	onB    = State{Seq: 5, Confirmed: B, Trial: None}
	trialB = State{Seq: 6, Confirmed: A, Trial: B, Tries: 3}
	spentB = State{Seq: 6, Confirmed: A, Trial: B, Tries: 0}
)

func TestTransitions(t *testing.T) {
	arm := func(s Slot, n int) func(State) (State, error) {
		return func(st State) (State, error) { return st.Arm(s, n) }
	}
	confirm := func(s Slot) func(State) (State, error) {
		return func(st State) (State, error) { return st.Confirm(s) }
	}
	for _, tt := range []struct {
		name string
		from State
		do   func(State) (State, error)
		want State // zero: refused
		is   error
	}{
		{"arm", onA, arm(B, 3), trialB, nil},
		{"arm the other way", onB, arm(A, 1), State{6, B, A, 1}, nil},
		{"arm the confirmed slot", onA, arm(A, 3), State{}, nil},
		{"arm none", onA, arm(None, 3), State{}, nil},
		{"arm without tries", onA, arm(B, 0), State{}, nil},
		{"arm with too many tries", onA, arm(B, 10), State{}, nil},
		{"arm on trial", trialB, arm(B, 3), State{}, ErrOnTrial},
		{"arm at the end of numbers", State{maxSeq, A, None, 0}, arm(B, 3), State{}, nil},
		{"confirm", trialB, confirm(B), State{7, B, None, 0}, nil},
		{"confirm in the last try", spentB, confirm(B), State{7, B, None, 0}, nil},
		{"confirm from the old slot", trialB, confirm(A), State{}, ErrNotTrial},
		{"confirm without a trial", onA, confirm(A), State{}, ErrNoTrial},
		{"roll back", trialB, State.RollBack, State{7, A, None, 0}, nil},
		{"roll back after the last try", spentB, State.RollBack, State{7, A, None, 0}, nil},
		{"roll back without a trial", onA, State.RollBack, State{}, ErrNoTrial},
	} {
		got, err := tt.do(tt.from)
		if tt.want == (State{}) {
			if err == nil || (tt.is != nil && !errors.Is(err, tt.is)) {
				t.Errorf("%s: %v, %v; want error %v", tt.name, got, err, tt.is)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestAttemptCountsDownAndFallsBack(t *testing.T) {
	s, err := New(A).Arm(B, 3)
	if err != nil {
		t.Fatal(err)
	}
	var boots []Slot
	for range 6 {
		var boot Slot
		if boot, s, err = s.Attempt(); err != nil {
			t.Fatal(err)
		}
		boots = append(boots, boot)
	}
	if diff := cmp.Diff([]Slot{B, B, B, A, A, A}, boots); diff != "" {
		t.Errorf("boots (-want +got):\n%s", diff)
	}
	for range 20 {
		boot, next, err := onA.Attempt()
		if boot != A || next != onA || err != nil {
			t.Fatalf("attempt of a confirmed slot: %v, %v, %v; want it for ever", boot, next, err)
		}
	}
	if _, _, err := (State{}).Attempt(); err == nil {
		t.Error("attempt of the zero state gave no error")
	}
}

func encode(t testing.TB, s State) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEncode(t *testing.T) {
	want := signature + "cv=1\nseq=6\nconfirmed=a\ntrial=b\ntries=3\nseal=1:6:a:b:3\n"
	got := string(encode(t, trialB))
	if len(got) != Size || strings.TrimRight(got, "#") != want {
		t.Errorf("encoded: %d bytes\n%s\nwant %s", len(got), got, want)
	}
	for _, s := range []State{onA, onB, trialB, spentB, {maxSeq, B, A, 9}, {0, A, None, 0}} {
		if got, err := Decode(encode(t, s)); err != nil || got != s {
			t.Errorf("Decode(Encode(%v)) = %v, %v", s, got, err)
		}
	}
	for _, s := range []State{{}, {1, "c", None, 0}, {1, A, A, 1}, {1, A, None, 1}, {1, A, B, 10}, {-1, A, None, 0}, {maxSeq + 1, A, None, 0}} {
		if b, err := s.Encode(); err == nil {
			t.Errorf("Encode(%v) = %q; want an error", s, b)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(encode(t, trialB))
	for name, data := range map[string]string{
		"empty":         "",
		"zeros":         string(make([]byte, Size)),
		"header only":   signature,
		"header, zeros": signature + string(make([]byte, Size-len(signature))),
		"cut in seal":   good[:strings.Index(good, "seal=")+8],
		"other tries":   strings.Replace(good, "tries=3", "tries=4", 1),
		"other seq":     strings.Replace(good, "seq=6", "seq=7", 1),
		"octal":         strings.NewReplacer("seq=6", "seq=06", "1:6:", "1:06:").Replace(good),
		"sealed c":      strings.NewReplacer("trial=b", "trial=c", ":b:", ":c:").Replace(good),
		"sealed a on a": strings.NewReplacer("trial=b", "trial=a", ":b:", ":a:").Replace(good),
		"two digits":    strings.NewReplacer("tries=3", "tries=33", ":b:3", ":b:33").Replace(good),
		"newer version": strings.NewReplacer("cv=1", "cv=2", "=1:6", "=2:6").Replace(good),
		"quotes":        strings.NewReplacer("trial=b", `trial="b"`, ":b:", `:"b":`).Replace(good),
	} {
		if s, err := Decode([]byte(data)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v; want ErrInvalid", name, s, err)
		}
	}
}

func TestChoose(t *testing.T) {
	old, current, bad := encode(t, onA), encode(t, trialB), []byte("nonsense")
	same := encode(t, State{Seq: 6, Confirmed: A, Trial: None})
	for _, tt := range []struct {
		name          string
		first, second []byte
		want          State
		index         int
	}{
		{"second newer", old, current, trialB, 1},
		{"first newer", current, old, trialB, 0},
		{"first damaged", bad, old, onA, 1},
		{"second damaged", old, bad, onA, 0},
		{"equals", current, same, trialB, 0},
	} {
		if got, i, err := Choose(tt.first, tt.second); got != tt.want || i != tt.index || err != nil {
			t.Errorf("%s: %v, %d, %v; want %v, %d", tt.name, got, i, err, tt.want, tt.index)
		}
	}
	if _, _, err := Choose(bad, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("Choose of two damaged copies: %v; want ErrInvalid", err)
	}
}

func TestBlockEscapes(t *testing.T) {
	block, err := EncodeBlock(128, Variable{"cmdline", `a\b` + "\nc=d"}, Variable{"x", ""})
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeBlock(block)
	if diff := cmp.Diff(map[string]string{"cmdline": `a\b` + "\nc=d", "x": ""}, got); diff != "" || err != nil {
		t.Errorf("block (-want +got): %v\n%s", err, diff)
	}
	if _, err := EncodeBlock(64, Variable{"cmdline", strings.Repeat("x", 64)}); err == nil {
		t.Error("a block that is too small gave no error")
	}
}

// TestBlockLikeGRUB holds what GRUB makes of blocks that EncodeBlock does not
// write.
func TestBlockLikeGRUB(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       map[string]string
	}{
		{"comment", "#a=1\\\nb=2\nc=3\n", map[string]string{"c": "3"}},
		{"name across lines", "junk\nseq=1\nb=2\n", map[string]string{"junk\nseq": "1", "b": "2"}},
		{"zero bytes", "a\x00x=1\x00y\n", map[string]string{"a": "1"}},
		{"the last of equals", "a=1\na=2\n", map[string]string{"a": "2"}},
		{"no end", "a=1\nb=2", map[string]string{"a": "1"}},
		{"escape at the end", "a=1\nb=2\\", map[string]string{"a": "1"}},
		{"backslash in a name", "a\\=1\n", map[string]string{"a\\": "1"}},
		{"padding before variables", "####\na=1\n####", map[string]string{"a": "1"}},
	} {
		got, err := DecodeBlock([]byte(signature + tt.body))
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s (-want +got): %v\n%s", tt.name, err, diff)
		}
	}
	if _, err := DecodeBlock([]byte(signature)); err == nil {
		t.Error("a signature alone is a block")
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []State{onA, trialB, spentB} {
		f.Add(encode(f, s))
	}
	f.Add([]byte(signature + "a\\\n=\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v; want ErrInvalid", err)
			}
			return
		}
		if err := s.Check(); err != nil {
			t.Errorf("decoded %v: %v", s, err)
		}
		again, err := Decode(encode(t, s))
		if err != nil || again != s {
			t.Errorf("decoded %v again as %v, %v", s, again, err)
		}
		if bytes.Count(data, []byte("seal=")) == 0 {
			t.Errorf("decoded %v without a seal", s)
		}
	})
}
