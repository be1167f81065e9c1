package declared

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestText(t *testing.T) {
	a := corev1.Taint{Key: "a", Value: "1", Effect: corev1.TaintEffectNoExecute}
	b := corev1.Taint{Key: "a", Effect: corev1.TaintEffectNoSchedule}
	for _, tt := range []struct {
		name string
		in   Declaration
		want string
	}{
		{"nothing", Declaration{}, `{"labels":{},"taints":[]}`},
		{
			"sorted", Declaration{Labels: map[string]string{"z": "1", "shop": "17"}, Taints: []corev1.Taint{b, a}},
			`{"labels":{"shop":"17","z":"1"},"taints":[{"key":"a","value":"1","effect":"NoExecute"},{"key":"a","value":"","effect":"NoSchedule"}]}`,
		},
	} {
		got, err := tt.in.Text()
		if err != nil {
			t.Fatal(err)
		}
		if got != tt.want {
			t.Errorf("%s: Text = %s; want %s", tt.name, got, tt.want)
		}
		back, err := Parse(got)
		if err != nil {
			t.Errorf("%s: Parse of what Text wrote: %v", tt.name, err)
		}
		again, err := back.Text()
		if err != nil || again != got {
			t.Errorf("%s: read and written again: %s, %v; want %s", tt.name, again, err, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{``, "read declaration: EOF"},
		{`[]`, "cannot unmarshal array"},
		{`{"labels":{},"taints":[]} {}`, "text after its end"},
		{`{"label":{}}`, `unknown field "label"`},
		{`{"labels":{"a b":"x"}}`, `label "a b": name part must consist of`},
		{`{"labels":{"a":"x y"}}`, `label "a": value "x y": a valid label must be`},
		{`{"taints":[{"key":"till","effect":"Never"}]}`, `taint "till:Never": the effect must be NoSchedule`},
		{`{"taints":[{"key":"","effect":"NoSchedule"}]}`, `taint ":NoSchedule": name part must be non-empty`},
		{`{"taints":[{"key":"t","value":"!","effect":"NoSchedule"}]}`, `taint "t:NoSchedule": value "!"`},
		{`{"taints":[{"key":"t","value":"1","effect":"NoSchedule"},{"key":"t","value":"2","effect":"NoSchedule"}]}`, "declared twice"},
		{`{"labels":{"a":"` + strings.Repeat("x", maxText) + `"}}`, "at most 65536 are taken"},
	} {
		_, err := Parse(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%.60s) = %v; want an error with %q", tt.text, err, tt.want)
		}
	}
}

func TestParseNamesEverything(t *testing.T) {
	_, err := Parse(`{"labels":{"a b":"x","c":"y z"}}`)
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("Parse with two problems = %v; want both named", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"labels":{"shop":"17"},"taints":[{"key":"a","value":"1","effect":"NoExecute"}]}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		once, err := d.Text()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("Parse(%q): %v", once, err)
		}
		if twice, err := again.Text(); err != nil || twice != once {
			t.Errorf("%s", cmp.Diff(once, twice))
		}
	})
}
