package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

func TestCertificateList(t *testing.T) {
	end := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	var sent []string
	p := serveControl(t, answering(t, map[string]any{"GET /v1/certificates": []admin.Certificate{
		{Name: "server-ca", Issuer: "cairn-server-ca@2", Authority: true, Expires: end.AddDate(9, 0, 0), Left: 3650 * 24 * time.Hour},
		{Name: "server-ca", Issuer: "cairn-server-ca@1", Authority: true, Idle: true, Expires: end, Left: 36 * time.Hour},
		{Name: "apiserver", Issuer: "cairn-server-ca@2", Expires: end, Left: -time.Hour},
	}}, &sent))
	out, errs, code := cairnctl(t, p, "certificate", "list")
	want := `NAME       AUTHORITY                               ENDS                 IN
server-ca  cairn-server-ca@2 (itself)              2036-01-02 03:04:05  3650d
server-ca  cairn-server-ca@1 (itself, only trusted)  2027-01-02 03:04:05  1d12h
apiserver  cairn-server-ca@2                       2027-01-02 03:04:05  -1h
`
	squeeze := func(s string) string {
		var all []string
		for line := range strings.Lines(s) {
			all = append(all, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(all, "\n")
	}
	if d := cmp.Diff(squeeze(want), squeeze(out)); code != exitOK || d != "" {
		t.Errorf("exit code %d, %s (-want +got):\n%s", code, errs, d)
	}
	var got []admin.Certificate
	if out, _, _ := cairnctl(t, p, "certificate", "list", "-o", "json"); json.Unmarshal([]byte(out), &got) != nil || len(got) != 3 {
		t.Errorf("as JSON: %s", out)
	}
}

// rotating answers as a control plane that goes through the stages, one each time it is asked.
type rotating struct {
	t      *testing.T
	begun  atomic.Int32
	asked  atomic.Int32
	states []any // admin.Rotation, or the problem's text
}

func (r *rotating) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	var answer any = admin.Rotation{Authority: "old"}
	if q.Method == http.MethodPost {
		var request admin.RotationRequest
		if err := json.NewDecoder(q.Body).Decode(&request); err != nil {
			r.t.Error(err)
		}
		if !request.Check {
			r.begun.Add(1)
			answer = admin.Rotation{ID: "new", Stage: "trust", Authority: "old", Waiting: []string{"server shop-2 is not there"}}
		}
	} else {
		answer = r.states[min(int(r.asked.Add(1)), len(r.states))-1]
	}
	if text, ok := answer.(string); ok {
		w.WriteHeader(http.StatusInternalServerError)
		answer = admin.Problem{Error: text}
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		r.t.Error(err)
	}
}

func TestCertificateRotate(t *testing.T) {
	sign := admin.Rotation{ID: "new", Stage: "sign", Authority: "new", Settles: time.Minute}
	done := admin.Rotation{Authority: "new"}
	for _, tt := range []struct {
		name   string
		args   string
		states []any
		code   int
		begun  int32
		want   []string
	}{
		{"shown to its end", "--yes", []any{sign, done}, exitOK, 1, []string{
			"will be replaced", "1/3 trust", "waits: server shop-2 is not there", "2/3 sign", "all have come so far", "All authorities are replaced", "cairnctl token show agent"}},
		{"server without power", "--yes --output json", []any{"the store has no quorum", done}, exitOK, 1, []string{"no answer: the store has no quorum", `"authority": "new"`}},
		{"not waited for", "--yes --no-wait", nil, exitOK, 1, []string{"has begun: see 'cairnctl cluster status'"}},
		{"given up", "--yes", []any{admin.Rotation{Authority: "old"}}, exitFailed, 1, []string{"ended before it was done"}},
		{"not confirmed", "", nil, exitFailed, 0, []string{"nothing was changed"}},
		{"with an argument", "now", nil, exitUsage, 0, []string{"see 'cairnctl certificate rotate --help'"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := &rotating{t: t, states: tt.states}
			p := serveControl(t, h)
			out, errs, code := cairnctl(t, p, append([]string{"certificate", "rotate"}, strings.Fields(tt.args)...)...)
			for _, want := range tt.want {
				if !strings.Contains(out+errs, want) {
					t.Errorf("lacks %q:\n%s%s", want, out, errs)
				}
			}
			if code != tt.code || h.begun.Load() != tt.begun {
				t.Errorf("exit code %d, begun %d times; want %d and %d", code, h.begun.Load(), tt.code, tt.begun)
			}
		})
	}
}

// TestCertificateRotateRefused does not ask a question that would be for nothing.
func TestCertificateRotateRefused(t *testing.T) {
	p := serveControl(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"error":"server shop-2 would be waited for"}`)) // the client has gone when this fails
	}))
	out, errs, code := cairnctl(t, p, "certificate", "rotate")
	if code != exitFailed || !strings.Contains(errs, "server shop-2 would be waited for") || strings.Contains(out+errs, "will be replaced") {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
}

// TestCertificateRotateInterrupted leaves the replacement to go on.
func TestCertificateRotateInterrupted(t *testing.T) {
	p := serveControl(t, &rotating{t: t, states: []any{admin.Rotation{ID: "new", Stage: "sign", Authority: "new"}}})
	ctx, cancel := context.WithTimeout(t.Context(), rotateInterval/2)
	defer cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, &out, &errs, []string{"certificate", "rotate", "--yes"}, p); code != exitFailed || !strings.Contains(errs.String(), "interrupted: the replacement goes on") {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}

func TestClusterStatusOfRotation(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    admin.Rotation
		code int
		want []string
	}{
		{"settles", admin.Rotation{ID: "x", Stage: "trust", Settles: 90 * time.Second}, exitOK, []string{"are replaced: stage 1 of 3 (trust) since 3m", "the stage settles for 1m30s"}},
		{"waits", admin.Rotation{ID: "x", Stage: "sign", Waiting: []string{"agent till-1 is slow"}}, exitOK, []string{"stage 2 of 3 (sign)", "waits for 1", "agent till-1 is slow"}},
		{"ends", admin.Rotation{ID: "x", Stage: "retire"}, exitOK, []string{"stage 3 of 3 (retire) since 3m, goes on"}},
		{"waits long", admin.Rotation{ID: "x", Stage: "sign", Waiting: []string{"agent till-1 is slow"}, Since: time.Now().Add(-rotationLate - time.Minute)}, exitFailed,
			[]string{"the replacement of the authorities waits: agent till-1 is slow"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := goodCluster()
			c.Rotation = &tt.r
			if tt.r.Since.IsZero() {
				tt.r.Since = time.Now().Add(-3 * time.Minute)
			}
			var sent []string
			p := serveControl(t, answering(t, map[string]any{"GET /v1/cluster": c}, &sent))
			out, errs, code := cairnctl(t, p, "cluster", "status")
			for _, want := range tt.want {
				if !strings.Contains(out+errs, want) {
					t.Errorf("lacks %q:\n%s%s", want, out, errs)
				}
			}
			if code != tt.code {
				t.Errorf("exit code %d; want %d", code, tt.code)
			}
		})
	}
}
