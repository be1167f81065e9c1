//go:build linux

package powerloss_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/store/powerloss"
)

// TestWriters replaces a file three times in various ways and cuts the power at
// every position: the file must be whole and of the last version that was
// written, or a later one. Two of the ways are wrong, and the test must notice.
func TestWriters(t *testing.T) {
	temporary := func(path, data string, flush bool) error {
		f, err := os.Create(path + ".new")
		if err != nil {
			return err
		}
		_, err = f.WriteString(data)
		if flush {
			err = errors.Join(err, f.Sync())
		}
		return errors.Join(err, f.Close(), os.Rename(path+".new", path))
	}
	for name, tt := range map[string]struct {
		write func(path, data string) error
		// bad are the variants that find something.
		bad []powerloss.Variant
	}{
		"atomicfile": {func(path, data string) error { return atomicfile.Write(path, []byte(data), 0o600) }, nil},
		"in place": {func(path, data string) error { return os.WriteFile(path, []byte(data), 0o600) },
			[]powerloss.Variant{powerloss.Torn, powerloss.DetachedTorn, powerloss.Unordered, powerloss.Least, powerloss.DetachedLeast, powerloss.Whole, powerloss.Hollow}},
		"without flushes": {func(path, data string) error { return temporary(path, data, false) },
			[]powerloss.Variant{powerloss.Torn, powerloss.DetachedTorn, powerloss.Unordered, powerloss.Least, powerloss.DetachedLeast}},
		"without a flush of the directory": {func(path, data string) error { return temporary(path, data, true) },
			[]powerloss.Variant{powerloss.Torn, powerloss.DetachedTorn, powerloss.Unordered, powerloss.Least, powerloss.DetachedLeast}},
	} {
		t.Run(name, func(t *testing.T) {
			version := func(n int) string { return strings.Repeat(fmt.Sprintf("version %d\n", n), 1000) }
			r := record(t, nothing, func(r *powerloss.Recorder, dir string) error {
				for n := 1; n <= 3; n++ {
					if err := tt.write(filepath.Join(dir, "f"), version(n)); err != nil {
						return err
					}
					r.Mark([]byte(strconv.Itoa(n)))
				}
				return nil
			})
			bad := map[powerloss.Variant]string{}
			for _, cut := range r.Cuts(1_000, 1) {
				written := len(r.Notes(cut))
				for seed := range uint64(10) {
					for _, s := range r.States(cut, seed) {
						data, err := s.File("f")
						ok := errors.Is(err, os.ErrNotExist) && written == 0
						for n := max(written, 1); n <= 3; n++ {
							ok = ok || string(data) == version(n)
						}
						if !ok {
							bad[s.Variant] = fmt.Sprintf("%s: %d bytes, %.9q, %v; version %d was written", s, len(data), data, err, written)
						}
					}
				}
			}
			for variant, what := range bad {
				if !slices.Contains(tt.bad, variant) {
					t.Error(what)
				}
			}
			if got, want := slices.Sorted(maps.Keys(bad)), slices.Sorted(slices.Values(tt.bad)); !slices.Equal(got, want) {
				t.Errorf("variants that find something: %q; want %q", got, want)
			}
		})
	}
}
