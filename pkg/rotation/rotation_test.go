package rotation

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
)

var update = flag.Bool("update", false, "write what the transcripts show into them")

// TestTranscripts carries out the lines of testdata that begin with ">" and compares what they show with what follows
// them.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := play(newWorld(t), string(data))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(data), got); d != "" {
				t.Errorf("%s (-want +got):\n%s", path, d)
			}
		})
	}
}

// play returns the script with what its commands show. Lines that begin with # and empty ones are kept.
func play(w *world, script string) string {
	var out strings.Builder
	for line := range strings.Lines(script) {
		command, ok := strings.CutPrefix(line, "> ")
		if !ok {
			if strings.HasPrefix(line, "#") || line == "\n" {
				out.WriteString(line)
			}
			continue
		}
		out.WriteString(line)
		if shown := w.do(strings.TrimSpace(command)); shown != "" {
			out.WriteString(shown + "\n")
		}
	}
	return out.String()
}

// TestRun has the parts work by themselves, on changes of the Secret.
func TestRun(t *testing.T) {
	w := newWorld(t)
	w.do("servers a")
	w.do("controllers a")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	server, leader := make(chan error, 1), make(chan error, 1)
	go func() { server <- w.parts["a"].Run(ctx) }()
	go func() { leader <- w.leader.Run(ctx, w.client) }()
	if shown := w.do("begin a"); shown != "ok" {
		t.Fatal(shown)
	}
	for _, stage := range stages() {
		for !strings.HasSuffix(w.mark("a"), "/"+string(stage)) {
			select {
			case <-ctx.Done():
				t.Fatalf("the server has not come to %s: %q", stage, w.mark("a"))
			case <-time.After(20 * time.Millisecond):
			}
		}
		if stage == retire {
			break
		}
		err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // the leader writes as well
			s := w.secret()
			state, err := parse(s)
			if err != nil {
				return err
			}
			state.Stage = stage.next()
			if s, err = state.fill(s); err != nil {
				return err
			}
			_, err = w.client.CoreV1().Secrets(join.Namespace).Update(ctx, s, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-leader; !errors.Is(err, ErrAnew) {
		t.Errorf("leader's Run = %v; want %v", err, ErrAnew)
	}
	cancel()
	if err := <-server; err != nil {
		t.Errorf("server's Run = %v; want none when its context has ended", err)
	}
}

// TestStages names them all in order, as metrics and servers' records have them.
func TestStages(t *testing.T) {
	for want, s := range []Stage{"", trust, sign, retire} {
		if got := s.Rank(); got != want {
			t.Errorf("Rank(%q) = %d; want %d", s, got, want)
		}
	}
	s := &State{ID: "x", Stage: sign}
	for mark, want := range map[string]bool{"": false, "x": false, "x/trust": false, "x/sign": true, "x/retire": true, "y/retire": false, "x/what": false} {
		if got := reached(mark, s); got != want {
			t.Errorf("reached(%q) = %v; want %v", mark, got, want)
		}
	}
}

func TestSettle(t *testing.T) {
	if got := settle(0); got < 2*time.Minute || got > 3*time.Minute {
		t.Errorf("Settle(0) = %s; want about two minutes", got)
	}
	for life := 10 * time.Minute; life < time.Hour; life += time.Minute { // Kubernetes rereads files each minute
		if got := settle(life); got < 70*time.Second || quietTime(life) != 70*time.Second {
			t.Errorf("Settle(%s) = %s, quiet %s; want more than a minute", life, got, quietTime(life))
		}
	}
	if got := quietTime(3 * time.Minute); got != 46*time.Second {
		t.Errorf("quietTime(3m) = %s; want 46s", got)
	}
	if got := settle(3 * time.Minute); got != 46*time.Second {
		t.Errorf("Settle(3m) = %s; want 46s", got)
	}
}

// TestPace looks often at first, and seldom at a stage that lasts.
func TestPace(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s := &State{Since: at}
	for after, want := range map[time.Duration]time.Duration{-time.Hour: 3, 0: 3, 10 * time.Minute: 3, 11 * time.Minute: 30} {
		if got := s.pace(at.Add(after), 3, 30); got != want {
			t.Errorf("pace after %s = %d; want %d", after, got, want)
		}
	}
}

// good is a state as Begin makes it.
func good(t testing.TB) *State {
	t.Helper()
	o := pki.Options{Dir: t.TempDir(), Node: "a"}
	if _, err := pki.EnsureAuthorities(o); err != nil {
		t.Fatal(err)
	}
	all, err := pki.Successors(o)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identify(all)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return &State{ID: id, Stage: trust, Since: at, Begun: at, By: "a", Successors: all}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*State)
		edit  func(*corev1.Secret)
		want  string // part of the error; empty: none
	}{
		{name: "as made"},
		{name: "stage", spoil: func(s *State) { s.Stage = "done" }, want: `no stage "done"`},
		{name: "time", spoil: func(s *State) { s.Since = time.Time{} }, want: "since when"},
		{name: "one lacks", spoil: func(s *State) { s.Successors = s.Successors[1:] }, want: "must have one of each"},
		{name: "one twice", spoil: func(s *State) { s.Successors[1] = s.Successors[0] }, want: "must have one of each"},
		{name: "stranger", spoil: func(s *State) { s.Successors[4].Name = "else" }, want: "must have one of each"},
		{name: "id", spoil: func(s *State) { s.ID = strings.Repeat("0", 64) }, want: "its id is"},
		{name: "no certificate", spoil: func(s *State) { s.Successors[0].Certificate = nil }, want: "has no certificate"},
		{name: "type", edit: func(s *corev1.Secret) { s.Type = "Opaque" }, want: "it has type Opaque"},
		{name: "empty", edit: func(s *corev1.Secret) { s.Data = nil }, want: "EOF"},
		{name: "rest", edit: func(s *corev1.Secret) { s.Data[stateKey] = append(s.Data[stateKey], '1') }, want: "follows the end"},
		{name: "field", edit: func(s *corev1.Secret) { s.Data[stateKey] = []byte(`{"else":1}`) }, want: `upgrade this server (json: unknown field "else")`},
		{name: "large", edit: func(s *corev1.Secret) { s.Data[stateKey] = make([]byte, maxState+1) }, want: "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state := good(t)
			if tt.spoil != nil {
				tt.spoil(state)
			}
			s, err := state.fill(nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.edit != nil {
				tt.edit(s)
			}
			got, err := parse(s)
			if tt.want == "" {
				if d := cmp.Diff(state, got); err != nil || d != "" {
					t.Errorf("Read = %v, %s", err, d)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read = %v; want an error with %q", err, tt.want)
			}
		})
	}
	if s, err := parse(nil); s != nil || err != nil {
		t.Errorf("Read(nil) = %v, %v", s, err)
	}
}

// FuzzRead expects that what is read is what is written again, and that nothing else is taken.
func FuzzRead(f *testing.F) {
	s, err := good(f).fill(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Data[stateKey])
	f.Add([]byte(`{"id":"","stage":"trust","successors":[{"name":"server-ca","certificate":"LS0t"}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		secret := s.DeepCopy()
		secret.Data[stateKey] = data
		state, err := parse(secret)
		if err != nil {
			return
		}
		again, err := state.fill(secret)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parse(again); err != nil || !cmp.Equal(state, got) {
			t.Errorf("read again: %v, %s", err, cmp.Diff(state, got))
		}
		// What pki makes of it is an error or none, and no panic.
		_, _ = pki.Outdated(t.TempDir(), state.Successors)
	})
}
