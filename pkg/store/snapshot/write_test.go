package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/k3s-io/kine/pkg/server"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestWriteCut looks at the directory before each step, as a power cut may
// leave it, with what was not flushed lost: nothing that has the name of a
// snapshot is anything but a whole one.
func TestWriteCut(t *testing.T) {
	for _, step := range []string{"create", "write", "hash", "flush", "compare", "verify", "rename", "flush directory"} {
		t.Run(step, func(t *testing.T) {
			dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
			if _, err := Write(t.Context(), filepath.Join(dir, fileName(1, sampleTime)), &list{revision: 1}); err != nil {
				t.Fatal(err)
			}
			cut := errors.New("cut")
			flushed := false
			s := steps{before: func(now string) error {
				flushed = flushed || now == "compare"
				if now == step {
					return errors.Join(os.CopyFS(state, os.DirFS(dir)), cut)
				}
				return nil
			}}
			_, err := write(t.Context(), s, dir, func(i Info) string { return fileName(i.Revision, sampleTime) }, sampleTime, sample(50))
			if !errors.Is(err, cut) {
				t.Fatalf("write: %v; want the cut", err)
			}
			want := 1
			if step == "flush directory" {
				want = 2
				if !errors.Is(err, atomicfile.ErrNotDurable) {
					t.Errorf("write: %v; want ErrNotDurable", err)
				}
			}
			if got := names(t, dir); len(got) != want {
				t.Errorf("after an error: %v; want %d files", got, want)
			}
			for _, name := range names(t, state) {
				path := filepath.Join(state, name)
				temporary := strings.HasPrefix(name, ".")
				if temporary && !flushed {
					if err := os.Truncate(path, 0); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := Verify(path); err != nil && !temporary {
					t.Error(err)
				}
			}
			if _, err := Clean(state); err != nil {
				t.Error(err)
			}
			if newest, damaged := Newest(state); newest == nil || len(damaged) > 0 {
				t.Errorf("newest %v, damaged %v; want one, none", newest, damaged)
			}
			for _, name := range names(t, state) {
				if strings.HasPrefix(name, ".") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

// TestWriteToBadDisk finds out that the disk does not keep what it is given.
func TestWriteToBadDisk(t *testing.T) {
	dir := t.TempDir()
	s := steps{before: func(step string) error {
		if step != "compare" {
			return nil
		}
		left, err := filepath.Glob(filepath.Join(dir, tempPattern))
		if err != nil || len(left) != 1 {
			t.Fatal(left, err)
		}
		f, err := os.OpenFile(left[0], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		value := make([]byte, 1)
		const at = 5 * pageSize
		if _, err := f.ReadAt(value, at); err != nil {
			return err
		}
		value[0] ^= 0x10
		_, err = f.WriteAt(value, at)
		return errors.Join(err, f.Close())
	}}
	_, err := write(t.Context(), s, dir, func(Info) string { return "s.db" }, sampleTime, sample(50))
	if err == nil || !strings.Contains(err.Error(), "read back") {
		t.Errorf("write to a disk that forgets: %v; want an error about what was read back", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %v; want nothing", got)
	}
}

// TestWriteCompacted begins anew when the revision is compacted, and gives up
// when that goes on.
func TestWriteCompacted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	source := sample(30)
	source.fail = []error{server.ErrCompacted, server.ErrCompacted}
	if _, err := Write(t.Context(), path, source); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(describe(source.rows), describe(rows(t, path))); diff != "" {
		t.Error(diff)
	}
	source.fail = []error{server.ErrCompacted, server.ErrCompacted, server.ErrCompacted}
	if _, err := Write(t.Context(), path, source); !errors.Is(err, server.ErrCompacted) {
		t.Errorf("Write: %v; want ErrCompacted", err)
	}
	boom := errors.New("boom")
	source.fail = []error{boom}
	if _, err := Write(t.Context(), path, source); !errors.Is(err, boom) {
		t.Errorf("Write: %v; want the source's error", err)
	}
	source.rows[3], source.rows[4] = source.rows[4], source.rows[3]
	if _, err := Write(t.Context(), path, source); err == nil || !strings.Contains(err.Error(), "ascending order") {
		t.Errorf("Write of rows that are not in order: %v; want an error that says so", err)
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("left: %v; want the snapshot", got)
	}
	if _, err := Write(t.Context(), filepath.Join(t.TempDir(), "absent", "s.db"), source); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Write into a missing directory: %v; want ErrNotExist", err)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "s.db"), filepath.Join(dir, "copy.db")
	want, err := Write(t.Context(), from, sample(30))
	if err != nil {
		t.Fatal(err)
	}
	want.Path = to
	got, err := Copy(from, to)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Copy: %v, %s", err, diff)
	}
	if again, err := Verify(to); again != want || err != nil {
		t.Errorf("Verify = %+v, %v; want %+v", again, err, want)
	}
	if err := os.Truncate(from, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(from, to); !errors.Is(err, ErrNoHash) {
		t.Errorf("Copy of a cut snapshot: %v; want ErrNoHash", err)
	}
	if _, err := Verify(to); err != nil {
		t.Errorf("what was there before: %v", err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}
