package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/reset"
	storeadmin "github.com/cairn-os/cairn/pkg/store/admin"
)

// serveControl has h answer for the control plane.
func serveControl(t *testing.T, h http.Handler) paths {
	t.Helper()
	p, _ := world(t)
	p.control = filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", p.control)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return p
}

// answering gives each request of a table its answer, and notes what was sent.
func answering(t *testing.T, answers map[string]any, sent *[]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body any
		if r.ContentLength > 0 {
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
		}
		text, _ := json.Marshal(body)
		*sent = append(*sent, r.Method+" "+r.URL.Path+" "+string(text))
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = admin.Problem{Error: "no token zzzzzz"}
		}
		if text, ok := answer.(string); ok {
			w.Write([]byte(text))
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
}

func TestTokens(t *testing.T) {
	made := admin.Token{ID: "x4k2p9", Role: "agent", Text: "K10ab::x4k2p9:secret"}
	var sent []string
	p := serveControl(t, answering(t, map[string]any{
		"GET /v1/tokens":           []admin.Token{{ID: "server", Role: "server"}, {ID: "x4k2p9", Role: "agent", Once: true, Expires: time.Now().Add(90*time.Minute + time.Second), Description: "till 7"}, {ID: "old", Role: "agent", Expires: time.Unix(1, 0)}},
		"POST /v1/tokens":          made,
		"GET /v1/tokens/x4k2p9":    made,
		"DELETE /v1/tokens/x4k2p9": struct{}{},
	}, &sent))
	for _, tt := range []struct {
		args string
		code int
		out  string // part of either output
		sent string
	}{
		{"token list", exitOK, "x4k2p9  agent   in 1h30m", "GET /v1/tokens null"},
		{"token list", exitOK, "old     agent   has expired", "GET /v1/tokens null"},
		{"token create --ttl 1h --once --description till", exitOK, made.Text + "\n", `POST /v1/tokens {"description":"till","once":true,"role":"agent","ttlNanoseconds":3600000000000}`},
		{"token create --role server --ttl 0", exitOK, made.Text, `POST /v1/tokens {"role":"server"}`},
		{"token create --role boss", exitUsage, `--role is agent or server, not "boss"`, ""},
		{"token create --ttl -1h", exitUsage, "--ttl is a duration", ""},
		{"token show x4k2p9", exitOK, made.Text, "GET /v1/tokens/x4k2p9 null"},
		{"token show x4k2p9 --output json", exitOK, `"text": "K10ab::x4k2p9:secret"`, "GET /v1/tokens/x4k2p9 null"},
		{"token show zzzzzz", exitFailed, "no token zzzzzz", "GET /v1/tokens/zzzzzz null"},
		{"token show", exitUsage, "see 'cairnctl token show --help'", ""},
		{"token revoke x4k2p9", exitOK, "", "DELETE /v1/tokens/x4k2p9 null"},
	} {
		sent = nil
		out, errs, code := cairnctl(t, p, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(out+errs, tt.out) {
			t.Errorf("%s: exit code %d, %q, %q; want %d and %q", tt.args, code, out, errs, tt.code, tt.out)
		}
		if diff := cmp.Diff(tt.sent, strings.Join(sent, "\n")); diff != "" {
			t.Errorf("%s: asked (-want +got):\n%s", tt.args, diff)
		}
	}
}

func TestKubeconfig(t *testing.T) {
	var sent []string
	p := serveControl(t, answering(t, map[string]any{"POST /v1/kubeconfig": "apiVersion: v1\n"}, &sent))
	out, errs, code := cairnctl(t, p, "kubeconfig", "--user", "ana", "--group", "system:masters", "--ttl", "8h")
	want := `POST /v1/kubeconfig {"groups":["system:masters"],"ttlNanoseconds":28800000000000,"user":"ana"}`
	if code != exitOK || out != "apiVersion: v1\n" || strings.Join(sent, "") != want {
		t.Errorf("exit code %d, %q, %q, asked %q; want %q", code, out, errs, sent, want)
	}
	for _, args := range [][]string{{"kubeconfig"}, {"kubeconfig", "--user", "ana", "--ttl", "0"}} {
		if _, errs, code := cairnctl(t, p, args...); code != exitUsage || !strings.Contains(errs, "--") {
			t.Errorf("%v: exit code %d, %q; want wrong usage", args, code, errs)
		}
	}
}

// goodCluster is a cluster without anything to look at.
func goodCluster() admin.Cluster {
	return admin.Cluster{
		Nodes: []admin.Node{
			{Name: "shop-1", Roles: []string{"control-plane"}, Ready: true, Kubelet: "v1.36.4", Version: "Cairn 1", Addresses: []string{"10.0.0.1"}, Age: 50 * time.Hour},
			{Name: "till-1", Ready: true, Kubelet: "v1.36.4", Version: "Cairn 1", Addresses: []string{"10.0.0.7"}, Age: 90 * time.Second},
		},
		Servers:      []admin.Server{{Name: "shop-1", Address: "10.0.0.1:6443", Reachable: true, Version: "v1.36.4", Leader: true}},
		Store:        storeadmin.Status{ID: 1, Leader: 1, Quorum: true, Members: []storeadmin.Member{{ID: 1, Name: "shop-1", Role: "voter", Leader: true, Online: true}}},
		Certificates: []admin.Certificate{{Name: "apiserver", Node: "shop-1", Left: 300*24*time.Hour + time.Hour}},
		Controllers:  "shop-1",
	}
}

func TestClusterStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*admin.Cluster)
		code   int
		want   []string
	}{
		{"sound", func(*admin.Cluster) {}, exitOK, []string{"Quorum        yes, 1 of 1 voters online", "Controllers   on shop-1", "the first (apiserver of shop-1) ends in 300d1h", "till-1  -              yes    v1.36.4  Cairn 1  10.0.0.7   1m30s"}},
		{"server gone", func(c *admin.Cluster) { c.Servers[0].Reachable, c.Servers[0].Problem = false, "no answer" }, exitFailed, []string{"no: no answer", "server shop-1 is out of reach"}},
		{"node gone", func(c *admin.Cluster) { c.Nodes[1].Ready = false }, exitFailed, []string{"node till-1 is not Ready"}},
		{"quorum lost", func(c *admin.Cluster) { c.Store.Quorum = false }, exitFailed, []string{"the store has no quorum"}},
		{"certificate ends soon", func(c *admin.Cluster) { c.Certificates[0].Left = 36 * time.Hour }, exitOK, []string{"apiserver    shop-1  1d12h"}},
		{"certificate has ended", func(c *admin.Cluster) { c.Certificates[0].Left = -time.Hour }, exitFailed, []string{"apiserver    shop-1  -1h", "certificate apiserver of shop-1 has expired"}},
		{"half known", func(c *admin.Cluster) { c.Problems = []string{"the nodes are not known: time-out"} }, exitFailed, []string{"PROBLEMS", "the nodes are not known"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := goodCluster()
			tt.change(&c)
			var sent []string
			p := serveControl(t, answering(t, map[string]any{"GET /v1/cluster": c}, &sent))
			out, errs, code := cairnctl(t, p, "cluster", "status")
			for _, want := range tt.want {
				if !strings.Contains(out+errs, want) {
					t.Errorf("cluster status lacks %q:\n%s%s", want, out, errs)
				}
			}
			if code != tt.code {
				t.Errorf("exit code %d; want %d", code, tt.code)
			}
			var got admin.Cluster
			if out, _, _ := cairnctl(t, p, "cluster", "status", "--output", "json"); json.Unmarshal([]byte(out), &got) != nil || got.Controllers != "shop-1" {
				t.Errorf("as JSON: %s", out)
			}
		})
	}
}

// TestNoControl asks a machine on which no control plane answers.
func TestNoControl(t *testing.T) {
	p, _ := world(t)
	p.control = filepath.Join(t.TempDir(), "none.sock")
	if _, errs, code := cairnctl(t, p, "token", "list"); code != exitFailed || !strings.Contains(errs, "cairnctl logs control") {
		t.Errorf("exit code %d, %q; want to be sent to the log", code, errs)
	}
	p.init = p.control
	if _, errs, code := cairnctl(t, p, "cluster", "status"); code != exitUnreachable {
		t.Errorf("exit code %d, %q; want %d without a node", code, errs, exitUnreachable)
	}
}

func TestReset(t *testing.T) {
	p, told := world(t)
	p.root = t.TempDir()
	if err := os.MkdirAll(filepath.Join(p.root, filepath.Dir(reset.Marker)), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := cairnctl(t, p, "reset"); code != exitFailed || !strings.Contains(errs, "nothing was changed") {
		t.Errorf("without an answer: exit code %d, %q", code, errs)
	}
	if _, errs, code := cairnctl(t, p, "reset", "--keep-config", "--yes"); code != exitOK {
		t.Fatalf("exit code %d, %q", code, errs)
	}
	if got := <-told.told; !strings.Contains(got, "reboot") {
		t.Errorf("init was told %q; want a reboot", got)
	}
	request, err := os.ReadFile(filepath.Join(p.root, reset.Marker))
	if err != nil || !strings.Contains(string(request), `"keepConfig":true`) {
		t.Errorf("the request is %q, %v", request, err)
	}
}

// TestRebootWithoutAnswer asks a daemon that is gone, with the machine, before it answers.
func TestRebootWithoutAnswer(t *testing.T) {
	p, _ := world(t)
	l, err := net.Listen("unix", p.daemon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 512)) // whatever it asks for
			c.Close()
		}
	}()
	if _, errs, code := cairnctl(t, p, "reboot"); code != exitOK {
		t.Errorf("reboot: exit code %d, %q; want success", code, errs)
	}
	if _, errs, code := cairnctl(t, p, "restart", "node"); code != exitFailed {
		t.Errorf("restart: exit code %d, %q; want a failure, for nobody knows whether it was done", code, errs)
	}
}
