package token

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var pin = Pin([]byte("a certificate"))

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       Token
		bad        string // part of the error
	}{
		{name: "whole", text: "K10" + pin + "::server:s3cret", want: Token{pin, "server", "s3cret"}},
		{name: "line from a file", text: "  K10" + pin + "::agent:x\n", want: Token{pin, "agent", "x"}},
		{name: "upper-case hash", text: "K10" + strings.ToUpper(pin) + "::a1b2c3:x", want: Token{pin, "a1b2c3", "x"}},
		{name: "colons in the secret", text: "K10" + pin + "::config:a:b::c", want: Token{pin, "config", "a:b::c"}},
		{name: "plain", text: "correct-horse", want: Token{Secret: "correct-horse"}},
		{name: "plain with colons", text: "abc::server:x", want: Token{Secret: "abc::server:x"}},
		{name: "plain in another script", text: "pässwörd", want: Token{Secret: "pässwörd"}},
		{name: "empty", bad: "empty"},
		{name: "blank", text: " \t\n", bad: "empty"},
		{name: "cut off in the hash", text: "K10" + pin[:40], bad: "no \"::\""},
		{name: "short hash", text: "K10" + pin[:40] + "::server:x", bad: "40 characters"},
		{name: "hash that is no hex", text: "K10" + strings.Repeat("z", 64) + "::server:x", bad: "0-9a-f"},
		{name: "no secret", text: "K10" + pin + "::server", bad: "no \":SECRET\""},
		{name: "empty secret", text: "K10" + pin + "::server:", bad: "secret is empty"},
		{name: "no id", text: "K10" + pin + "::" + ":x", bad: "id"},
		{name: "id that could be a path", text: "K10" + pin + "::../x:y", bad: "id"},
		{name: "two words", text: "two words", bad: "spaces"},
		{name: "control character", text: "a\x00b", bad: "printed"},
		{name: "long", text: strings.Repeat("x", 513), bad: "longer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.text)
			if tt.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Fatalf("Parse(%q) = %v, %v; want an error with %q", tt.text, got, err, tt.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if again, err := Parse(got.String()); err != nil || again != got {
				t.Errorf("Parse(String()) = %v, %v; want %v", again, err, got)
			}
			if got.Plain() != (tt.want.Pin == "") {
				t.Errorf("Plain() = %v", got.Plain())
			}
		})
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	for _, text := range []string{"K10abc::server:topsecret", "K10" + pin + "::UPPER:topsecret", "K10topsecret", "topsecret with space"} {
		if _, err := Parse(text); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("Parse(%q): error %v; want one without the secret", text, err)
		}
	}
}

func TestLogValue(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("x", "one", Token{Pin: pin, ID: "server", Secret: "topsecret"}, "two", Token{Secret: "topsecret"})
	if strings.Contains(b.String(), "topsecret") || !strings.Contains(b.String(), "one=server") {
		t.Errorf("log line %q", b.String())
	}
}

func TestNew(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		secret, err := NewSecret()
		if err != nil {
			t.Fatal(err)
		}
		id, err := NewID()
		if err != nil {
			t.Fatal(err)
		}
		if len(secret) != 32 || len(id) != 6 || !ValidID(id) || seen[secret] {
			t.Errorf("NewSecret, NewID = %q, %q", secret, id)
		}
		seen[secret] = true
		text := Token{pin, id, secret}.String()
		if got, err := Parse(text); err != nil || got.Secret != secret || got.ID != id {
			t.Errorf("Parse(%q) = %v, %v", text, got, err)
		}
	}
}

// FuzzParse checks that what is taken is what is written again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "plain", "K10", "K10" + pin + "::server:x", "K10" + pin + "::a-b:c:d", "K10::::", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(got.String())
		if err != nil || again != got {
			t.Errorf("Parse(%q) = %v; written and read again: %v, %v", text, got, again, err)
		}
		if got.Secret == "" || (!got.Plain() && !ValidID(got.ID)) {
			t.Errorf("Parse(%q) = %v", text, got)
		}
	})
}
