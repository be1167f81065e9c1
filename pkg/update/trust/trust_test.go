package trust_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/update/source"
	"github.com/cairn-os/cairn/pkg/update/trust"
)

// machine is a node: a clock, an anchor, and a directory that lives through restarts.
type machine struct {
	t        *testing.T
	dir      string
	anchor   string
	url      string
	built    time.Time
	now      time.Time
	measured bool
}

func newMachine(t *testing.T, r *repository) *machine {
	t.Helper()
	m := &machine{t: t, dir: filepath.Join(t.TempDir(), "upgrade"), anchor: filepath.Join(t.TempDir(), "root.json"), url: r.url, now: today, measured: true}
	m.built = today.Add(-100 * day)
	if err := os.WriteFile(m.anchor, r.anchor(), 0o644); err != nil {
		t.Fatal(err)
	}
	return m
}

// start is the daemon's start: everything that is known comes from the disk.
func (m *machine) start() *trust.Client {
	m.t.Helper()
	s, err := source.Open(source.Options{URL: m.url, Tries: 2, FirstWait: time.Millisecond, Stall: 5 * time.Second})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(s.Close)
	c, err := trust.Open(trust.Options{
		Dir: m.dir, Anchor: m.anchor, Source: s, Built: m.built,
		Clock: func() (time.Time, bool) { return m.now, m.measured },
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// look refreshes and reads the channel and its manifest.
func look(ctx context.Context, c *trust.Client) (release.Manifest, error) {
	if err := c.Refresh(ctx); err != nil {
		return release.Manifest{}, err
	}
	ch, err := c.Channel(ctx, "amd64", "stable")
	if err != nil {
		return release.Manifest{}, err
	}
	return c.Manifest(ctx, "amd64", ch.Version)
}

// sees looks and wants a version.
func (m *machine) sees(version string) {
	m.t.Helper()
	got, err := look(m.t.Context(), m.start())
	if err != nil {
		m.t.Fatalf("want version %s: %v", version, err)
	}
	if diff := cmp.Diff(manifest("amd64", version), got); diff != "" {
		m.t.Error(diff)
	}
}

// refuses looks and wants an error of that kind.
func (m *machine) refuses(kind error, text string) {
	m.t.Helper()
	_, err := look(m.t.Context(), m.start())
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
		m.t.Errorf("error = %v; want one of kind %q with %q", err, kind, text)
	}
	m.t.Log(err)
}

// kept are the files of the machine's cache, by name below its directory.
func (m *machine) kept() map[string]string {
	m.t.Helper()
	files := map[string]string{}
	for _, pattern := range []string{"*", "trusted/*", "trusted/.*"} {
		names, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				continue // a directory
			}
			short, _ := filepath.Rel(m.dir, name)
			files[short] = string(data)
		}
	}
	return files
}

func (m *machine) keep(files map[string]string) {
	m.t.Helper()
	if err := errors.Join(os.RemoveAll(m.dir), os.MkdirAll(filepath.Join(m.dir, "trusted"), 0o755)); err != nil {
		m.t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(data), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
}

func html(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<!DOCTYPE html><title>Welcome</title>")
}

func endless(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := w.Write(make([]byte, 32<<10)); err != nil {
			return
		}
	}
}

func half(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(data[:len(data)/2]) }
}

// TestAttacks shows a machine that knows version 0.1.0 a directory that something is wrong with, says what must come of
// it, and that a good directory is taken after that. A machine that knows nothing yet must refuse it too, where fresh says.
func TestAttacks(t *testing.T) {
	const ts = "metadata/timestamp.json"
	for _, c := range []struct {
		name   string
		attack func(r *repository, old map[string][]byte)
		kind   error
		text   string
		fresh  bool
		newer  bool // the timestamp is good, and may be kept
	}{
		{name: "timestamp signed by another key", kind: trust.ErrSignature, text: "timestamp.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.publishTimestamp(r.keys[metadata.TARGETS]...)
		}},
		{name: "timestamp not signed", kind: trust.ErrSignature, fresh: true, attack: func(r *repository, _ map[string][]byte) { r.publishTimestamp() }},
		{name: "snapshot signed by another key", kind: trust.ErrSignature, text: "snapshot.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.publishSnapshot(r.keys[metadata.TARGETS]...)
			r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
		}},
		{name: "targets signed by another key", kind: trust.ErrSignature, text: "targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.publishTargets(r.keys[metadata.SNAPSHOT]...)
			r.publishSnapshot(r.keys[metadata.SNAPSHOT]...)
			r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
		}},
		{name: "root signed by one of two", kind: trust.ErrSignature, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.publishRoot(r.keys[metadata.ROOT][0])
		}},
		{name: "root signed by the new keys only", kind: trust.ErrSignature, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.newKeys(metadata.ROOT)
			r.publishRoot(r.keys[metadata.ROOT]...)
		}},
		{name: "root signed by the old keys only", kind: trust.ErrSignature, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.publishRoot(r.newKeys(metadata.ROOT)...)
		}},
		{name: "root of another version", kind: trust.ErrRollback, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.put("metadata/2.root.json", r.get("metadata/1.root.json"))
		}},
		{name: "old directory", kind: trust.ErrRollback, text: "timestamp.json", attack: func(r *repository, old map[string][]byte) { r.show(old) }},
		{name: "old snapshot by a new timestamp", kind: trust.ErrRollback, text: "timestamp.json", attack: func(r *repository, _ map[string][]byte) {
			r.timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(1)
			r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
		}},
		{name: "old targets by a new snapshot", kind: trust.ErrRollback, text: "3.snapshot.json", newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.snapshot.Signed.Meta["targets.json"] = metadata.MetaFile(1)
			r.publishSnapshot(r.keys[metadata.SNAPSHOT]...)
			r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
		}},
		{name: "snapshot from another state", kind: trust.ErrAltered, text: "3.snapshot.json", fresh: true, newer: true, attack: func(r *repository, old map[string][]byte) {
			r.release("0.3.0", "")
			r.put("metadata/3.snapshot.json", old["metadata/1.snapshot.json"])
		}},
		{name: "snapshot from another state, no hashes", kind: trust.ErrMixedUp, text: "3.snapshot.json", newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.hashes = false
			r.release("0.3.0", "")
			r.put("metadata/3.snapshot.json", r.get("metadata/2.snapshot.json"))
		}},
		{name: "targets from another state, no hashes", kind: trust.ErrMixedUp, text: "3.targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.hashes = false
			r.release("0.3.0", "")
			r.put("metadata/3.targets.json", r.get("metadata/2.targets.json"))
		}},
		{name: "timestamp expired", kind: trust.ErrExpired, text: "timestamp.json: expired on 2026-05-31", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.timestamp.Signed.Expires = today.Add(-day)
			r.publish()
		}},
		{name: "snapshot expired", kind: trust.ErrExpired, text: "snapshot.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.snapshot.Signed.Expires = today.Add(-day)
			r.publish()
		}},
		{name: "targets expired", kind: trust.ErrExpired, text: "targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.targets.Signed.Expires = today.Add(-day)
			r.publish()
		}},
		{name: "root expired", kind: trust.ErrExpired, text: "root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			expires := r.root.Signed.Expires
			r.root.Signed.Expires = today.Add(-day)
			r.publishRoot(r.keys[metadata.ROOT]...)
			r.root.Signed.Expires = expires
		}},
		{name: "timestamp cut off", kind: trust.ErrMalformed, text: "timestamp.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.replace(ts, half(r.get(ts)))
		}},
		{name: "snapshot cut off", kind: trust.ErrMalformed, text: "3.snapshot.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.hashes = false
			r.publish()
			r.replace("metadata/3.snapshot.json", half(r.get("metadata/3.snapshot.json")))
		}},
		{name: "targets altered", kind: trust.ErrAltered, text: "3.targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.publish()
			r.put("metadata/3.targets.json", []byte(strings.Replace(string(r.get("metadata/3.targets.json")), "stable", "stabel", 1)))
		}},
		{name: "web page for the timestamp", kind: source.ErrWebPage, text: "captive portal", fresh: true, attack: func(r *repository, _ map[string][]byte) { r.replace(ts, html) }},
		{name: "web page for a root", kind: source.ErrWebPage, text: "captive portal", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.replace("metadata/2.root.json", html)
		}},
		{name: "no timestamp", kind: source.ErrNotFound, text: "timestamp.json", fresh: true, attack: func(r *repository, _ map[string][]byte) { r.replace(ts, http.NotFound) }},
		{name: "endless timestamp", kind: source.ErrTooLarge, text: "timestamp.json", fresh: true, attack: func(r *repository, _ map[string][]byte) { r.replace(ts, endless) }},
		{name: "endless root", kind: source.ErrTooLarge, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.replace("metadata/2.root.json", endless)
		}},
		{name: "endless snapshot", kind: source.ErrTooLarge, text: "3.snapshot.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.publish()
			r.replace("metadata/3.snapshot.json", endless)
		}},
		{name: "endless targets", kind: source.ErrTooLarge, text: "3.targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.hashes = false
			r.publish()
			r.replace("metadata/3.targets.json", endless)
		}},
		{name: "signed timestamp without its entry", kind: trust.ErrMalformed, text: "snapshot.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			meta := r.timestamp.Signed.Meta
			r.timestamp.Signed.Meta = map[string]*metadata.MetaFiles{}
			r.publishTimestamp(r.keys[metadata.TIMESTAMP]...)
			r.timestamp.Signed.Meta = meta
		}},
		{name: "null among the targets", kind: trust.ErrMalformed, text: "3.targets.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.hashes = false
			r.publish()
			r.put("metadata/3.targets.json", []byte(`{"signed": {"_type": "targets", "targets": {"x": null}}, "signatures": []}`))
		}},
		{name: "null among the roles", kind: trust.ErrMalformed, text: "2.root.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.put("metadata/2.root.json", []byte(`{"signed": {"_type": "root", "roles": {"root": null}, "keys": {"x": null}}, "signatures": []}`))
		}},
		{name: "manifest of another target", kind: trust.ErrMixedUp, text: "about 0.2.0 for rpi", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			data, err := manifest("rpi", "0.2.0").Encode()
			r.must(err)
			r.add("amd64/0.2.0/release.json", data)
			r.publish()
		}},
		{name: "manifest of another version", kind: trust.ErrMixedUp, text: "about 0.1.0 for amd64", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			data, err := manifest("amd64", "0.1.0").Encode()
			r.must(err)
			r.add("amd64/0.2.0/release.json", data)
			r.publish()
		}},
		{name: "manifest of no sense", kind: trust.ErrMalformed, text: "amd64/0.2.0/release.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.add("amd64/0.2.0/release.json", []byte("{}"))
			r.publish()
		}},
		{name: "manifest not signed for", kind: trust.ErrUnknown, text: "amd64/0.2.0/release.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			delete(r.targets.Signed.Targets, "amd64/0.2.0/release.json")
			r.publish()
		}},
		{name: "manifest altered", kind: trust.ErrAltered, text: "amd64/0.2.0/release.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			place := r.place("amd64/0.2.0/release.json")
			r.put(place, []byte(strings.Replace(string(r.get(place)), "0a0a", "0a0b", 1)))
		}},
		{name: "manifest cut off", kind: trust.ErrAltered, text: "amd64/0.2.0/release.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			place := r.place("amd64/0.2.0/release.json")
			r.replace(place, half(r.get(place)))
		}},
		{name: "manifest endless", kind: source.ErrTooLarge, text: "release.json", fresh: true, attack: func(r *repository, _ map[string][]byte) {
			r.replace(r.place("amd64/0.2.0/release.json"), endless)
		}},
		{name: "channel longer than a channel", kind: source.ErrTooLarge, text: "amd64/stable.json", fresh: true, newer: true, attack: func(r *repository, _ map[string][]byte) {
			r.add("amd64/stable.json", make([]byte, release.MaxChannelSize+1))
			r.publish()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRepository(t)
			old := r.copyFiles()
			m := newMachine(t, r)
			r.release("0.2.0", "")
			m.sees("0.2.0")
			good, keys, before := r.copyFiles(), maps.Clone(r.keys), m.kept()
			c.attack(r, old)
			m.refuses(c.kind, c.text)
			after := m.kept()
			if c.newer { // as the specification says
				for _, name := range []string{"trusted/timestamp.json", "trusted/snapshot.json", "trusted/targets.json"} {
					delete(before, name)
					delete(after, name)
				}
			}
			_, rootTaken := after["trusted/2.root.json"]
			if rootTaken != (c.name == "root expired") { // which is well signed: a part of the chain
				t.Errorf("root 2 was taken: %v", rootTaken)
			}
			delete(after, "trusted/2.root.json")
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the cache changed:\n%s", diff)
			}
			if c.fresh {
				fresh := newMachine(t, r)
				fresh.refuses(c.kind, c.text)
			}
			repair(r, good, keys, rootTaken)
			m.sees("0.9.0")
		})
	}
}

// repair does what the owner of the repository does afterwards: the good files again, and a newer release over all that
// was issued meanwhile. A root that the machine took stays, and is followed by another.
func repair(r *repository, good map[string][]byte, keys map[string][]ed25519.PrivateKey, rootTaken bool) {
	files := r.copyFiles()
	maps.Copy(files, good)
	if rootTaken {
		r.show(files)
		r.publishRoot(r.keys[metadata.ROOT]...)
	} else {
		delete(files, "metadata/2.root.json")
		r.show(files)
		root, err := metadata.Root().FromBytes(r.anchor())
		r.must(err)
		r.root, r.keys = root, keys
	}
	r.targets.Signed.Expires, r.snapshot.Signed.Expires = today.Add(90*day), today.Add(60*day)
	r.timestamp.Signed.Expires = today.Add(30 * day)
	r.release("0.9.0", "")
}
