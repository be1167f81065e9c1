package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/status"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

// storeNode is a node whose store answers, and whose processes start and stop.
type storeNode struct {
	paths
	t *testing.T

	mu     sync.Mutex
	state  map[string]string
	status admin.Status
}

func (s *storeNode) Status() status.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := example()
	st.Processes = nil
	for _, name := range []string{"store", "control"} {
		st.Processes = append(st.Processes, status.Process{Name: name, State: s.state[name]})
	}
	return st
}

func (s *storeNode) Start(name string) error { return s.set("start", name, "ready") }
func (s *storeNode) Stop(name string) error  { return s.set("stop", name, "stopped") }

func (s *storeNode) set(verb, name, state string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state[name] = state
	return s.note(verb + " " + name)
}

// note writes down what was asked for, where cairn-store does as well.
func (s *storeNode) note(what string) error {
	f, err := os.OpenFile(s.storeProgram+".calls", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(what + "\n")
	return errors.Join(err, f.Close())
}

// did returns what init, the store and cairn-store were asked for, in order.
func (s *storeNode) did() string {
	s.t.Helper()
	data, err := os.ReadFile(s.storeProgram + ".calls")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	_ = os.Remove(s.storeProgram + ".calls")
	return strings.TrimSpace(string(data))
}

// tool makes cairn-store a program that notes how it was called.
func (s *storeNode) tool(exit string) {
	s.t.Helper()
	script := "#!/bin/sh\necho \"$@\" >> \"$0.calls\"\necho cairn-store \"$1\"\n" + exit + "\n"
	if err := os.WriteFile(s.storeProgram, []byte(script), 0o700); err != nil {
		s.t.Fatal(err)
	}
}

var snapshotFile = func() []byte {
	content := []byte(strings.Repeat("state", 100))
	sum := sha256.Sum256(content)
	return append(content, sum[:]...)
}()

func exampleSnapshot() admin.Snapshot {
	return admin.Snapshot{
		Name: "snapshot-20261121T120000Z-4711.db", Member: 0xb, Revision: 4711, Size: int64(len(snapshotFile)),
		Time: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Keys: 1200, Hash: hex.EncodeToString(snapshotFile[len(snapshotFile)-sha256.Size:]),
	}
}

func exampleStore() admin.Status {
	taken := exampleSnapshot()
	return admin.Status{
		ID: 0xa, Name: "till-1", Phase: "follower", Leader: 0xb, Term: 7, Quorum: true, Revision: 4800, Size: 24 << 20, Snapshot: &taken,
		Disk: admin.Disk{Sync: 2100 * time.Microsecond, Heartbeat: 150 * time.Millisecond, Election: 1500 * time.Millisecond},
		Members: []admin.Member{
			{ID: 0xa, Name: "till-1", Role: "voter", Online: true, Zone: "east", Addresses: []string{"10.0.0.1:2380"}},
			{ID: 0xb, Name: "till-2", Role: "voter", Leader: true, Online: true, Addresses: []string{"10.0.0.2:2380"}},
			{ID: 0xc, Name: "till-3", Role: "voter", Witness: true, LastSeen: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)},
			{ID: 0xd, Name: "twin", Role: "spare"},
			{ID: 0xe, Name: "twin", Role: "spare"},
		},
	}
}

// ServeHTTP answers as the store would.
func (s *storeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := r.Method + " " + r.URL.RequestURI()
	var answer any = struct{}{}
	switch call {
	case "GET /v1/status":
		answer = s.status
	case "POST /v1/snapshot":
		answer = exampleSnapshot()
	case "GET /v1/snapshots", "GET /v1/snapshots?member=000000000000000b":
		answer = []admin.Snapshot{}
		if strings.HasSuffix(call, "b") {
			answer = []admin.Snapshot{exampleSnapshot()}
		}
	case "GET /v1/snapshots/snapshot-20261121T120000Z-4711.db?member=000000000000000b":
		_, _ = w.Write(snapshotFile)
		return
	default:
		if err := s.note(call); err != nil {
			s.t.Error(err)
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// newStoreNode returns one of which everything runs.
func newStoreNode(t *testing.T) *storeNode {
	t.Helper()
	dir := t.TempDir()
	s := &storeNode{t: t, status: exampleStore(), state: map[string]string{"store": "ready", "control": "ready"}}
	s.paths = serveInit(t, dir, s)
	s.store, s.storeProgram, s.storeDir = filepath.Join(dir, "store.sock"), filepath.Join(dir, "cairn-store"), "/data"
	l, err := net.Listen("unix", s.store)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: s, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	s.tool("exit 0")
	return s
}

func (s *storeNode) Restart(string) error    { return nil }
func (s *storeNode) Reboot() error           { return nil }
func (s *storeNode) PowerOff() error         { return nil }
func (s *storeNode) Announce(string, string) {}

func TestStoreStatus(t *testing.T) {
	s := newStoreNode(t)
	out, errs, code := cairnctl(t, s.paths, "store", "status")
	if code != exitOK || errs != "" {
		t.Errorf("exit code %d, %s", code, errs)
	}
	golden(t, "store.txt", out)
	out, _, code = cairnctl(t, s.paths, "store", "status", "-o", "json")
	var got admin.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v in %s", code, err, out)
	}
	if diff := cmp.Diff(exampleStore(), got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	if out, _, _ := cairnctl(t, s.paths, "status"); !strings.Contains(out, "Store      follower, 2 of 3 voters online, revision 4800\n") {
		t.Errorf("the node's status lacks the store:\n%s", out)
	}
	s.status.Quorum, s.status.Phase, s.status.Message = false, "no-leader", "start the other servers"
	if out, errs, code := cairnctl(t, s.paths, "store", "status"); code != exitFailed || !strings.Contains(errs, "no quorum: start the other servers") || out == "" {
		t.Errorf("without quorum: exit code %d, %q, %q", code, out, errs)
	}
	if out, _, code := cairnctl(t, s.paths, "store", "members"); code != exitOK || !strings.HasPrefix(out, "MEMBER ") {
		t.Errorf("members: exit code %d, %s", code, out)
	}
}

func TestStoreMembers(t *testing.T) {
	s := newStoreNode(t)
	for _, tt := range []struct {
		args       []string
		code       int
		want, told string
	}{
		{[]string{"remove", "till-3"}, exitOK, "till-3 (000000000000000c) is no member any more", "DELETE /v1/members/000000000000000c"},
		{[]string{"remove", "000000000000000d"}, exitOK, "twin (000000000000000d)", "DELETE /v1/members/000000000000000d"},
		{[]string{"remove", "till-1", "--online"}, exitOK, "till-1", "DELETE /v1/members/000000000000000a"},
		{[]string{"remove", "till-1"}, exitFailed, "till-1 is online: stop the store there first", ""},
		{[]string{"remove", "till-2"}, exitFailed, "till-2 leads: run 'cairnctl store leader'", ""},
		{[]string{"remove", "twin"}, exitFailed, `2 members are named "twin": give the ID of one of`, ""},
		{[]string{"remove", "nobody"}, exitFailed, `no member "nobody"; there are till-1 (000000000000000a), till-2`, ""},
		{[]string{"leader"}, exitOK, "", "POST /v1/leader"},
		{[]string{"leader", "till-1"}, exitOK, "", "POST /v1/leader"},
		{[]string{"leader", "nobody"}, exitFailed, `no member "nobody"`, ""},
		{[]string{"remove"}, exitUsage, "accepts 1 arg", ""},
	} {
		out, errs, code := cairnctl(t, s.paths, append([]string{"store"}, tt.args...)...)
		if told := s.did(); code != tt.code || !strings.Contains(out+errs, tt.want) || told != tt.told {
			t.Errorf("%v: exit code %d, %q, %q, the store was told %q; want %d, %q, %q", tt.args, code, out, errs, told, tt.code, tt.want, tt.told)
		}
	}
	if out, _, _ := cairnctl(t, s.paths, "__complete", "store", "remove", ""); !strings.Contains(out, "till-1\ntill-2\n") {
		t.Errorf("completion offers %q", out)
	}
}

func TestStoreSnapshots(t *testing.T) {
	s := newStoreNode(t)
	dir := t.TempDir()
	out, errs, code := cairnctl(t, s.paths, "store", "snapshot")
	if want := "Snapshot snapshot-20261121T120000Z-4711.db on till-2: revision 4711, 1200 keys, 0.0 MiB\n"; out != want || code != exitOK {
		t.Errorf("snapshot: %d, %q, %q; want %q", code, out, errs, want)
	}
	for _, args := range [][]string{{"snapshot", "--output-file", filepath.Join(dir, "a")}, {"export", filepath.Join(dir, "b")}} {
		if _, errs, code := cairnctl(t, s.paths, append([]string{"store"}, args...)...); code != exitOK {
			t.Errorf("%v: %d, %s", args, code, errs)
		}
		if _, errs, code := cairnctl(t, s.paths, append([]string{"store"}, args...)...); code != exitFailed || !strings.Contains(errs, "exists") {
			t.Errorf("%v onto a file: %d, %s", args, code, errs)
		}
	}
	for _, name := range []string{"a", "b"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != string(snapshotFile) {
			t.Errorf("%s: %d bytes, %v; want the %d of the snapshot", name, len(data), err, len(snapshotFile))
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	out, errs, code = cairnctl(t, s.paths, "store", "snapshots")
	if code != exitOK || !strings.Contains(out, "snapshot-20261121T120000Z-4711.db  till-2  2026-11-21T12:00:00Z  4711") {
		t.Errorf("snapshots: %d, %q, %q", code, out, errs)
	}
}

// TestStoreOffline: what ran is stopped, and started again whatever happens.
func TestStoreOffline(t *testing.T) {
	const (
		verified, restored = "verify -- /snap.db", "restore --dir /data --from /snap.db --yes"
		stopped, started   = "\nstop control\nstop store\n", "\nstart store\nstart control"
	)
	for _, tt := range []struct {
		name  string
		world func(*storeNode)
		args  []string
		code  int
		text  string
		did   string
	}{
		{"restore", nil, []string{"restore", "/snap.db", "--yes"}, exitOK, "The store is at revision 4800 now.", verified + stopped + restored + started},
		{"import", nil, []string{"import", "/snap.db", "--yes"}, exitOK, "Starting control", verified + stopped + restored + started},
		{"nobody confirms", nil, []string{"restore", "/snap.db"}, exitFailed, "nothing was changed", verified},
		{
			"the file is damaged", func(s *storeNode) { s.tool("exit 1") },
			[]string{"restore", "/snap.db", "--yes"}, exitFailed, "cairn-store verify: exit status 1", verified,
		},
		{
			"the restore fails", func(s *storeNode) { s.tool(`test "$1" = verify`) },
			[]string{"restore", "/snap.db", "--yes"}, exitFailed, "cairn-store restore: exit status 1", verified + stopped + restored + started,
		},
		{
			"control was stopped before", func(s *storeNode) { s.state["control"] = "stopped" },
			[]string{"restore", "/snap.db", "--yes"}, exitOK, "", verified + "\nstop store\n" + restored + "\nstart store",
		},
		{
			"others are online", func(s *storeNode) { s.status.Members[1].Online = true },
			[]string{"restore", "/snap.db", "--yes"}, exitFailed, "the store runs on till-2 too", verified,
		},
		{
			"recover with a quorum", func(s *storeNode) { s.status.Quorum = true },
			[]string{"recover", "--yes"}, exitFailed, "the store has a quorum (1 of 3 voters online), there is nothing to recover", "",
		},
		{"recover", nil, []string{"recover", "--yes"}, exitOK, "", strings.TrimSpace(stopped) + "\nrecover --dir /data --yes" + started},
		{"dry run", nil, []string{"recover", "--dry-run"}, exitOK, "", strings.TrimSpace(stopped) + "\nrecover --dir /data --dry-run" + started},
		{"verify", nil, []string{"verify", "/snap.db"}, exitOK, "cairn-store verify\n", verified},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStoreNode(t)
			s.status.Members[1].Online, s.status.Quorum = false, false
			if tt.world != nil {
				tt.world(s)
			}
			out, errs, code := cairnctl(t, s.paths, append([]string{"store"}, tt.args...)...)
			if code != tt.code || !strings.Contains(out+errs, tt.text) {
				t.Errorf("exit code %d, %q, %q; want %d, %q", code, out, errs, tt.code, tt.text)
			}
			if diff := cmp.Diff(tt.did, s.did()); diff != "" {
				t.Errorf("what was done (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStoreDown: the node answers, its store does not.
func TestStoreDown(t *testing.T) {
	s := newStoreNode(t)
	s.store = filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"status"}, {"members"}, {"snapshot"}, {"snapshots"}, {"remove", "x"}} {
		if _, errs, code := cairnctl(t, s.paths, append([]string{"store"}, args...)...); code != exitFailed || !strings.Contains(errs, "cairnctl logs store") {
			t.Errorf("%v: exit code %d, %s", args, code, errs)
		}
	}
	// The one time that a store is restored which does not even start.
	if _, errs, code := cairnctl(t, s.paths, "store", "restore", "/snap.db", "--yes"); code != exitOK {
		t.Errorf("restore: exit code %d, %s", code, errs)
	}
}

// TestStoreHelp: every command of the store explains itself.
func TestStoreHelp(t *testing.T) {
	for _, cmd := range storeCommand(node{}).Commands() {
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s lacks help", cmd.CommandPath())
		}
	}
}

// TestStoreInterrupted: an operator who interrupts a restore is left with a
// node that runs.
func TestStoreInterrupted(t *testing.T) {
	s := newStoreNode(t)
	s.status.Members = nil
	s.tool(`test "$1" = verify || exec sleep 60`)
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	var out, errs strings.Builder
	go func() { ended <- run(ctx, &out, &errs, []string{"store", "restore", "/snap.db", "--yes"}, s.paths) }()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		data, _ := os.ReadFile(s.storeProgram + ".calls")
		if strings.Contains(string(data), "restore") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nothing is restored: %q", data)
		}
	}
	interrupt()
	select {
	case code := <-ended:
		if code != exitFailed || !strings.Contains(errs.String(), "cairn-store restore:") {
			t.Errorf("exit code %d, %q", code, errs.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if did := s.did(); !strings.HasSuffix(did, "--yes\nstart store\nstart control") {
		t.Errorf("what was done: %s\nwant that both are started at the end", did)
	}
}
