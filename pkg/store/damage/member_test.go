//go:build cgo && linux

package damage_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/member"
)

// The test binary runs a member instead of tests where childTask is set:
// dqlite aborts the process at some inputs.
const (
	childTask = "CAIRN_TEST_DAMAGE_TASK" // write, check, cluster or start.
	childDir  = "CAIRN_TEST_DAMAGE_DIR"
	childSize = "CAIRN_TEST_DAMAGE_SIZE" // Bytes of a value, for write.
	// started is printed when the member answers: "started <rows> <highest id>".
	started = "started"
)

// params keep the directories small: a snapshot each 32 entries.
var params = member.SnapshotParams{Threshold: 32, Trailing: 64}

// TestChild is the process of a member.
func TestChild(t *testing.T) {
	task := os.Getenv(childTask)
	if task == "" {
		t.Skip("the other tests' child process")
	}
	if err := runChild(task, os.Getenv(childDir)); err != nil {
		fmt.Println("failed:", err)
		t.Fatal(err)
	}
}

func runChild(task, dir string) error {
	switch task {
	case "cluster":
		return runCluster(dir)
	case "start":
		return runStart(dir)
	}
	m, err := member.Start(member.Options{Dir: dir, Snapshot: params, Latency: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	c, err := m.Connector()
	if err != nil {
		return err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)"); err != nil {
		return err
	}
	rows, highest, err := read(ctx, db)
	if err != nil {
		return err
	}
	fmt.Println(started, rows, highest)
	if task == "check" {
		return nil // The process ends here; nothing is closed in order.
	}
	size, err := strconv.Atoi(os.Getenv(childSize))
	if err != nil {
		return err
	}
	stop, done := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer done()
	value := make([]byte, size)
	for id := highest + 1; stop.Err() == nil; id++ {
		fill(value, id)
		if _, err := db.Exec("INSERT INTO t (id, v) VALUES (?, ?)", id, value); err != nil {
			fmt.Println("error", id, err)
			time.Sleep(10 * time.Millisecond)
			id--
			continue
		}
		fmt.Println("acknowledged", id)
	}
	if err := db.Close(); err != nil {
		return err
	}
	return m.Close()
}

// fill makes the value of a row: nothing that compresses to nothing, and some
// sectors of zeros, as pages of a database have them.
func fill(value []byte, id int) {
	for i := range value {
		if i/600%2 == 0 {
			value[i] = byte(id * (i + 7) >> 3)
		} else {
			value[i] = 0
		}
	}
}

// read counts the rows whose values are right.
func read(ctx context.Context, db *sql.DB) (rows, highest int, err error) {
	r, err := db.QueryContext(ctx, "SELECT id, v FROM t ORDER BY id")
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	for r.Next() {
		var id int
		var value []byte
		if err := r.Scan(&id, &value); err != nil {
			return 0, 0, err
		}
		want := make([]byte, len(value))
		if fill(want, id); bytes.Equal(value, want) {
			rows++
		}
		highest = id
	}
	return rows, highest, r.Err()
}

func child(task, dir string, size int) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childTask+"="+task, childDir+"="+dir, childSize+"="+strconv.Itoa(size), "MALLOC_ARENA_MAX=1")
	return cmd
}

// write runs a task that writes on dir until n writes were acknowledged, ends
// it by the signal, and returns the highest acknowledged id.
func write(t *testing.T, task, dir string, n, size int, end syscall.Signal) int {
	t.Helper()
	cmd := child(task, dir, size)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	highest, count := 0, 0
	lines := bufio.NewScanner(out)
	var other []string
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
			if highest, err = strconv.Atoi(id); err != nil {
				t.Fatal(err)
			}
			if count++; count == n {
				_ = cmd.Process.Signal(end)
			}
		} else {
			other = append(other, lines.Text())
		}
	}
	_ = cmd.Wait()
	if count < n {
		t.Fatalf("%d writes were acknowledged, then it ended: %s\n%s", count, strings.Join(other, "\n"), &stderr)
	}
	return highest
}

// outcome is what dqlite made of a directory.
type outcome struct {
	started       bool
	rows, highest int
	output        string
}

// check starts a member on dir and asks what is in it.
func check(t *testing.T, dir string) outcome {
	t.Helper()
	return run(t, "check", dir)
}

func run(t *testing.T, task, dir string) outcome {
	t.Helper()
	cmd := child(task, dir, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait()
	o := outcome{output: out.String()}
	for line := range strings.Lines(o.output) {
		if n, err := fmt.Sscanf(line, started+" %d %d", &o.rows, &o.highest); n == 2 && err == nil {
			o.started = true
		}
	}
	return o
}

// copyDir copies the files of a directory, without the zeros at their ends.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		writeSparse(t, filepath.Join(to, e.Name()), data)
	}
}

func writeSparse(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.TrimRight(data, "\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(data))); err != nil {
		t.Fatal(err)
	}
}
