package trust_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

// memory is a release directory without a wire, for speed.
type memory map[string][]byte

func (m memory) Fetch(_ context.Context, path string, offset, limit int64) (io.ReadCloser, error) {
	data, ok := m[path]
	if !ok {
		return nil, source.ErrNotFound
	}
	if int64(len(data)) > limit {
		return nil, source.ErrTooLarge
	}
	return io.NopCloser(bytes.NewReader(data[offset:])), nil
}

func (m memory) String() string  { return "memory" }
func (m memory) Received() int64 { return 0 }
func (m memory) Close()          {}

// FuzzMetadata puts data in place of one file of a good directory: it must be refused without harm, unless it says the
// same in other words.
func FuzzMetadata(f *testing.F) {
	files := []string{"metadata/2.root.json", "metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/2.targets.json"}
	r := newRepository(f)
	r.hashes = false
	r.publish()
	for i, name := range files {
		if data := r.files[name]; data != nil {
			f.Add(byte(i), data)
		}
		f.Add(byte(i), []byte(`{"signed": {"_type": "root", "roles": {"root": null}, "targets": {"x": null}, "meta": {"snapshot.json": null}}, "signatures": []}`))
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		name := files[int(which)%len(files)]
		s := memory(maps.Clone(r.files))
		good := s[name]
		s[name] = data
		m := newMachine(t, r)
		open := func() *trust.Client {
			c, err := trust.Open(trust.Options{Dir: m.dir, Anchor: m.anchor, Source: s, Built: m.built, Clock: func() (time.Time, bool) { return today, true }})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		err := open().Refresh(t.Context())
		if err == nil && good == nil {
			t.Errorf("a root was taken:\n%s", data)
		}
		delete(s, name)
		if good != nil {
			s[name] = good
		}
		if err := open().Refresh(t.Context()); err != nil {
			t.Errorf("after %s was\n%s\n%v (kept: %v)", name, data, err, filepath.Join(m.dir, "trusted"))
		}
	})
}
