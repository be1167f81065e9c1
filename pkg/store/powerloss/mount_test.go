//go:build linux

package powerloss_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

// record returns what f does to a new directory that before has filled.
func record(t *testing.T, before func(dir string) error, f func(r *powerloss.Recorder, dir string) error) *powerloss.Recording {
	t.Helper()
	if err := powerloss.Available(); err != nil {
		t.Skip(err)
	}
	backing, at := t.TempDir(), t.TempDir()
	if err := before(backing); err != nil {
		t.Fatal(err)
	}
	r, err := powerloss.Start(backing, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) }) // Stop has done it, or f failed.
	if err := f(r, at); err != nil {
		t.Fatal(err)
	}
	recording, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return recording
}

func nothing(string) error { return nil }

// TestRecord compares the log with what was done.
func TestRecord(t *testing.T) {
	r := record(t, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "old"), []byte("12345"), 0o600)
	}, func(r *powerloss.Recorder, dir string) error {
		in := func(name string) string { return filepath.Join(dir, name) }
		var errs []error
		do := func(err error) { errs = append(errs, err) }
		do(os.Mkdir(in("d"), 0o700))
		f, err := os.OpenFile(in("d/f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		if err != nil {
			return err
		}
		do(unix.Fallocate(int(f.Fd()), 0, 0, 8192))
		_, err = f.WriteAt([]byte("abc"), 4096)
		do(err)
		_, err = f.WriteAt([]byte("tail"), 8192)
		do(err)
		do(f.Truncate(4098))
		do(f.Chmod(0o600))
		do(os.Rename(in("d/f"), in("g")))
		do(f.Sync())
		do(atomicfile.SyncDir(in("d")))
		do(os.Remove(in("g")))
		_, err = f.WriteAt([]byte("x"), 0) // It has no name any more.
		do(err)
		do(f.Close())
		r.Mark([]byte("half"))
		do(os.Link(in("old"), in("d/link")))
		do(os.WriteFile(in("old"), []byte("67"), 0o600)) // Cuts it off.
		do(os.Rename(in("d"), in("e")))
		do(os.WriteFile(in("e/new"), nil, 0o600))
		do(unix.Renameat2(unix.AT_FDCWD, in("e/new"), unix.AT_FDCWD, in("old"), unix.RENAME_EXCHANGE))
		do(os.Remove(in("e/new")))
		do(os.RemoveAll(in("e")))
		do(atomicfile.SyncDir(dir))
		if err := os.Symlink("old", in("s")); err == nil {
			errs = append(errs, errors.New("a symbolic link, which is not recorded, was made"))
		}
		return errors.Join(errs...)
	})
	var got []string
	for _, e := range r.Events {
		if e.Began > r.Start {
			_, what, _ := strings.Cut(e.String(), " ")
			got = append(got, what)
		}
	}
	want := strings.Split(strings.TrimSpace(`
mkdir file 3 "d" in 1
create file 4 "f" in 3
allocate file 4 to 8192, durable false
write file 4 3 bytes at 4096, durable false, grows false
write file 4 4 bytes at 8192, durable false, grows true
truncate file 4 to 4098, durable false
chmod file 4
rename file 4 "f" in 3 to "g" in 1
sync file 4
sync file 3
remove file 4 "g" in 1
write file 4 1 bytes at 0, durable false, grows false
mark half
link file 2 "link" in 3
truncate file 2 to 0, durable false
write file 2 2 bytes at 0, durable false, grows true
rename file 3 "d" in 1 to "e" in 1
create file 5 "new" in 3
exchange file 5 "new" in 3 to "old" in 1
remove file 2 "new" in 3
remove file 2 "link" in 3
remove file 3 "e" in 1
sync file 1`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if r.Statistics != (powerloss.Statistics{Writes: 4, Bytes: 10, Largest: 4}) {
		t.Errorf("statistics %+v; want 4 writes, 10 bytes", r.Statistics)
	}
}

// TestDurableDescriptor writes through O_DSYNC, with and without O_DIRECT, as
// dqlite does: what has returned is safe, and not before it has begun.
func TestDurableDescriptor(t *testing.T) {
	for name, flags := range map[string]int{"cached": unix.O_DSYNC, "synchronous": unix.O_SYNC, "direct": unix.O_DSYNC | unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			const size = 3 << 20 // The kernel splits it.
			page := 4096
			data := make([]byte, size+page)
			// Direct writes are of whole pages from whole pages.
			data = data[page-int(uintptr(unsafe.Pointer(&data[0]))%uintptr(page)):][:size]
			for i := range data {
				data[i] = 1 + byte(i/page%200)
			}
			r := record(t, func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "f"), make([]byte, size), 0o600)
			}, func(r *powerloss.Recorder, dir string) error {
				f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_WRONLY|flags, 0)
				if err != nil {
					return err
				}
				r.Mark([]byte("before"))
				_, err = f.WriteAt(data, 0)
				r.Mark([]byte("written"))
				return errors.Join(err, f.Close())
			})
			for _, cut := range r.Cuts(1_000, 1) {
				notes, partial := len(r.Notes(cut)), false
				for _, s := range r.States(cut, 1) {
					got, err := s.File("f")
					if err != nil {
						t.Fatal(err)
					}
					if whole := bytes.Equal(got, data); notes == 2 && !whole {
						t.Errorf("%s: a write that has returned is not there", s)
					} else if !whole && !bytes.Equal(got, make([]byte, size)) {
						partial = true
					}
				}
				if notes == 0 && partial {
					t.Errorf("cut %d: data is there before it is written", cut)
				}
			}
			if (r.Statistics.Direct > 0) != (flags&unix.O_DIRECT != 0) || r.Statistics.Durable != r.Statistics.Writes {
				t.Errorf("statistics %+v of a file opened with %#x", r.Statistics, flags)
			}
		})
	}
}

// TestStateIsWhatWasThere compares the state that lost nothing with the
// directory.
func TestStateIsWhatWasThere(t *testing.T) {
	var want map[string]string
	r := record(t, nothing, func(_ *powerloss.Recorder, dir string) error {
		data := []byte(strings.Repeat("0123456789abcdef", 1000))
		err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
		for i := range 5 {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, "a", fmt.Sprint(i)), data[:i*4000], 0o644))
		}
		err = errors.Join(err, os.Truncate(filepath.Join(dir, "a/4"), 100_000), os.Truncate(filepath.Join(dir, "a/3"), 5_000),
			os.Rename(filepath.Join(dir, "a/2"), filepath.Join(dir, "a/b/2")), os.Link(filepath.Join(dir, "a/1"), filepath.Join(dir, "one")))
		want = files(t, dir)
		return err
	})
	to := t.TempDir()
	if err := r.States(r.End, 1, powerloss.Whole)[0].Write(to); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, files(t, to)); diff != "" {
		t.Errorf("the directory (-there +state):\n%s", diff)
	}
}

// files returns what the files below dir hold.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found[strings.TrimPrefix(path, dir+"/")] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
