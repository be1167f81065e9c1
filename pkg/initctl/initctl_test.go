package initctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-os/cairn/pkg/status"
)

// node records what it was told.
type node struct {
	mu   sync.Mutex
	told []string
}

func (n *node) tell(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, fmt.Sprintf(format, args...))
	return nil
}

func (n *node) Status() status.Status {
	return status.Status{Hostname: "till-1", Slot: status.Slot{Name: "a", State: status.SlotTrial},
		Phases: []status.Phase{{Name: "data", StartS: 1.5, DurationS: 0.038}}}
}

func (n *node) Start(p string) error { return n.tell("start %s", p) }
func (n *node) Stop(p string) error  { panic("a bug in the handler of " + p) }
func (n *node) Restart(p string) error {
	if p != "store" {
		return errors.New("no such process")
	}
	return n.tell("restart %s", p)
}
func (n *node) Reboot() error              { return n.tell("reboot") }
func (n *node) PowerOff() error            { return n.tell("poweroff") }
func (n *node) Announce(text, mark string) { n.tell("announce %s as %q", text, mark) }

// slotted is a node with slots, the state of which is on its disk.
type slotted struct {
	node
	state error // why it is not to be believed that the slot is confirmed
}

func (n *slotted) Confirm() error { return n.state }

func TestConfirm(t *testing.T) {
	for name, tt := range map[string]struct {
		h    Handler
		want string
	}{
		"confirmed on the disk": {&slotted{}, ""},
		"still on trial":        {&slotted{state: errors.New("confirm: the disk says otherwise")}, "init: confirm: the disk says otherwise"},
		"no slots":              {&node{}, "init: confirm: this node has no slots"},
	} {
		err := serveHandler(t, tt.h).Do(t.Context(), Request{Verb: VerbConfirm})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: Do(confirm) = %v; want %q", name, err, tt.want)
		}
	}
}

func serve(t *testing.T) (*node, Client) {
	t.Helper()
	n := &node{}
	return n, serveHandler(t, n)
}

func serveHandler(t *testing.T, h Handler) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "init.sock")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // a left-over is replaced
		t.Fatal(err)
	}
	s, err := Listen(path, h, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return Client{Path: path}
}

func TestCalls(t *testing.T) {
	n, c := serve(t)
	ctx := t.Context()
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(n.Status(), st, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("Status() (-want +got):\n%s", diff)
	}
	for _, req := range []Request{
		{Verb: VerbStart, Process: "store"}, {Verb: VerbRestart, Process: "store"}, {Verb: VerbReboot},
		{Verb: VerbPowerOff}, {Verb: VerbAnnounce, Text: "node till-1 Ready after 71.3s", Mark: "node ready"},
	} {
		if err := c.Do(ctx, req); err != nil {
			t.Errorf("Do(%v) = %v", req, err)
		}
	}
	want := []string{"start store", "restart store", "reboot", "poweroff", `announce node till-1 Ready after 71.3s as "node ready"`}
	if diff := cmp.Diff(want, n.told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	var re *RemoteError
	if err := c.Do(ctx, Request{Verb: VerbRestart, Process: "nobody"}); !errors.As(err, &re) || re.Text != "no such process" {
		t.Errorf("Do(restart nobody) = %v; want init's words", err)
	}
	if err := c.Do(ctx, Request{Verb: VerbStop, Process: "store"}); err == nil {
		t.Error("a panicking handler answered success")
	}
	if _, err := c.Status(ctx); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	if st, err := os.Stat(c.Path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", st, err)
	}
}

func TestBadClients(t *testing.T) {
	_, c := serve(t)
	for in, want := range map[string]string{
		"\n":                                "bad request",
		"GET / HTTP/1.1\n":                  "bad request",
		`{"verb":"format-disk"}` + "\n":     "unknown verb",
		strings.Repeat("x", 2*maxRequest):   "longer than",
		`{"verb":"status","evil":1}` + "\n": "unknown field",
	} {
		conn, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, in)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.Contains(line, want) {
			t.Errorf("answer to %.30q: %q, %v; want %q", in, line, err, want)
		}
		conn.Close()
	}
	// Silent clients hold no one up: more of them than slots may come, and leave.
	for range maxClients - 1 {
		conn, err := net.Dial("unix", c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("Status() beside silent clients = %v", err)
	}
}

func TestClientWithoutServer(t *testing.T) {
	c := Client{Path: filepath.Join(t.TempDir(), "none.sock")}
	if _, err := c.Status(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Status() = %v; want not exist", err)
	}
}

func TestClientHeedsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := (Client{Path: path}).Status(ctx); err == nil || time.Since(begin) > 4*time.Second {
		t.Errorf("Status() = %v after %s; want an error soon", err, time.Since(begin))
	}
}

func TestParseRequest(t *testing.T) {
	tests := []struct {
		in   string
		want Request
		bad  string
	}{
		{in: `{"verb":"status"}`, want: Request{Verb: VerbStatus}},
		{in: `{"verb":"restart","process":"node"}` + "\n", want: Request{Verb: VerbRestart, Process: "node"}},
		{in: `{"verb":"restart"}`, bad: "with process"},
		{in: `{"verb":"status","process":"node"}`, bad: "with process"},
		{in: `{"verb":"announce"}`, bad: "with text"},
		{in: `{"verb":"announce","text":"\u001b[2J"}`, bad: "control character"},
		{in: `{"verb":"restart","process":"` + strings.Repeat("x", 65) + `"}`, bad: "too long"},
		{in: `{"verb":"status"} {}`, bad: "data after"},
		{in: `[]`, bad: "bad request"},
		{in: ``, bad: "bad request"},
		{in: `{"verb":"confirm"}`, want: Request{Verb: VerbConfirm}},
		{in: `{"verb":"confirm","text":"b"}`, bad: "with text"},
	}
	for _, tt := range tests {
		got, err := ParseRequest([]byte(tt.in))
		if tt.bad == "" {
			if err != nil || got != tt.want {
				t.Errorf("ParseRequest(%s) = %+v, %v; want %+v", tt.in, got, err, tt.want)
			}
			continue
		}
		if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), tt.bad) {
			t.Errorf("ParseRequest(%s) error = %v; want %q", tt.in, err, tt.bad)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"verb":"restart","process":"node"}`))
	f.Add([]byte(`{"verb":"status"}{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := ParseRequest(data)
		if err == nil && req.check() != nil {
			t.Errorf("accepted %+v", req)
		}
		if err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("untyped error %v", err)
		}
	})
}
