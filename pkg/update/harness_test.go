package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

const (
	bootPartition = 160 << 10
	rootPartition = 512 << 10
	bootImage     = 96 << 10
	rootBlocks    = 60
)

var (
	testParams = chunk.Params{Min: 1024, Avg: 4096, Max: 16384}
	running    = Running{release.Info{Version: "1.0.0", Kubernetes: "v1.36.4", Kernel: "6.12.1"}, "amd64", slot.A}
	next       = release.Info{Version: "1.1.0", Kubernetes: "v1.36.5", Kernel: "6.12.2", BuildTime: 1767225600}
	noon       = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

// noise returns n bytes that look random and are the same every time.
func noise(seed, n int) []byte {
	var counter [16]byte
	binary.LittleEndian.PutUint64(counter[:], uint64(seed))
	var b []byte
	for i := 0; len(b) < n; i++ {
		binary.LittleEndian.PutUint64(counter[8:], uint64(i))
		s := sha256.Sum256(counter[:])
		b = append(b, s[:]...)
	}
	return b[:n]
}

// withTree appends verity's superblock and tree to a file system, as the image builder does.
func withTree(data []byte) (whole []byte, rootHash string) {
	f, err := os.CreateTemp("", "root-*.img")
	check(err)
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	check(errors.Join(err, f.Close()))
	salt := sha256.Sum256(data)
	p := verity.DefaultParams()
	p.DataBlockSize, p.HashBlockSize, p.DataBlocks = verityBlock, verityBlock, uint64(len(data)/verityBlock)
	p.Salt, p.SaltSize, p.UUID, p.HashAreaOffset = salt[:], uint16(len(salt)), [16]byte(salt[:16]), uint64(len(data))
	hash, err := verity.Create(&p, f.Name(), f.Name())
	check(err)
	whole, err = os.ReadFile(f.Name())
	check(err)
	return whole, hex.EncodeToString(hash)
}

// world is a machine with slot a running 1.0.0, and a release 1.1.0 on a server.
type world struct {
	t        testing.TB
	dir      string // release directory
	targets  map[string][]byte
	channel  release.Channel
	manifest release.Manifest
	boot     []byte // images of the release
	root     []byte
	disk     *disk
	upgrade  string // directory of the history
	calls    []string
	o        Options
	get      func(ctx context.Context, path string) ([]byte, error) // replaces the server when not nil
}

// disk is the four partitions and the boot selector, with a record of what was done to them.
type disk struct {
	t     testing.TB
	parts map[string][]byte
	state slot.State
	runs  slot.Slot // is not to be written
	log   []event
	// fault is asked before each write and sync; an error fails it.
	fault func(e event) error
	// corrupt changes what reads give after Forget.
	corrupt func(part string, p []byte, offset int64)
	forgot  map[string]bool
	history string // copied at each event, when not ""
}

// event is one thing that happened to the disk: a write, a sync (no data), or a new state of the boot selector.
type event struct {
	part    string // "boot-b"; "" for the boot selector
	offset  int64
	data    []byte
	state   slot.State
	call    string            // a callback that was called; nothing happened to the disk
	history map[string][]byte // before it
}

func (d *disk) happen(e event) error {
	if d.fault != nil && e.call == "" {
		if err := d.fault(e); err != nil {
			return err
		}
	}
	if d.history != "" {
		e.history = files(d.t, d.history)
	}
	d.log = append(d.log, e)
	return nil
}

func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil {
			all[name], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (d *disk) Open(s slot.Slot, image string, write bool) (Device, error) {
	return &device{d, image + "-" + string(s), write}, nil
}

func (d *disk) Read() (slot.State, error) {
	if d.state == (slot.State{}) {
		return d.state, slot.ErrInvalid
	}
	return d.state, nil
}

func (d *disk) Arm(s slot.Slot, tries int) (slot.State, error) {
	return d.change(func(now slot.State) (slot.State, error) { return now.Arm(s, tries) })
}

func (d *disk) RollBack() (slot.State, error) { return d.change(slot.State.RollBack) }

func (d *disk) change(f func(slot.State) (slot.State, error)) (slot.State, error) {
	now, err := f(d.state)
	if err == nil {
		err = d.happen(event{state: now})
	}
	if err == nil {
		d.state = now
	}
	return d.state, err
}

type device struct {
	d     *disk
	part  string
	write bool
}

func (v *device) Size() int64  { return int64(len(v.d.parts[v.part])) }
func (v *device) Close() error { return nil }

func (v *device) ReadAt(p []byte, offset int64) (int, error) {
	n, err := bytes.NewReader(v.d.parts[v.part]).ReadAt(p, offset)
	if v.d.corrupt != nil && v.d.forgot[v.part] {
		v.d.corrupt(v.part, p, offset)
	}
	return n, err
}

func (v *device) WriteAt(p []byte, offset int64) (int, error) {
	if !v.write || strings.HasSuffix(v.part, string("-"+v.d.runs)) {
		v.d.t.Errorf("%d bytes written to %s at %d: it is the running slot's, or was opened for reading", len(p), v.part, offset)
	}
	if len(p) == 0 || offset+int64(len(p)) > v.Size() {
		v.d.t.Errorf("write of %d bytes at %d of %s", len(p), offset, v.part)
	}
	if err := v.d.happen(event{part: v.part, offset: offset, data: bytes.Clone(p)}); err != nil {
		return 0, err
	}
	copy(v.d.parts[v.part][offset:], p)
	return len(p), nil
}

func (v *device) Sync() error { return v.d.happen(event{part: v.part}) }

func (v *device) Forget() error {
	v.d.forgot[v.part] = true
	return nil
}

func (w *world) Channel(context.Context) (release.Channel, error) { return w.channel, nil }

func (w *world) Manifest(_ context.Context, version string) (release.Manifest, error) {
	if version != w.manifest.Version {
		return release.Manifest{}, fmt.Errorf("version %s: %w", version, fs.ErrNotExist)
	}
	return w.manifest, nil
}

func (w *world) Target(_ context.Context, path string, limit int64) ([]byte, error) {
	data, ok := w.targets[path]
	if !ok {
		return nil, fmt.Errorf("target %s: %w", path, fs.ErrNotExist)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("target %s: %d bytes", path, len(data))
	}
	return data, nil
}

func (w *world) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	get := w.get
	if get == nil {
		get = w.server
	}
	data, err := get(ctx, path)
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has %d bytes; want at most %d", path, len(data), limit)
	}
	return data, err
}

func (w *world) server(_ context.Context, path string) ([]byte, error) {
	return os.ReadFile(filepath.Join(w.dir, path))
}

// published is a release, and a machine that could come to it. It is made once and never changed.
type published struct {
	dir        string
	targets    map[string][]byte
	manifest   release.Manifest
	boot, root []byte
	parts      map[string][]byte
}

// theRelease makes a release of which the running slot has about two thirds. TestMain removes its directory.
var theRelease = sync.OnceValue(func() published {
	old := noise(1, (rootBlocks-10)*verityBlock)
	oldRoot, _ := withTree(old)
	fresh := slices.Concat(old[:80_000], noise(2, 30_000), make([]byte, 40_000), old[80_000:150_000], noise(3, 9000), noise(3, 9000))
	fresh = append(fresh, noise(4, rootBlocks*verityBlock-len(fresh))...)
	oldBoot := noise(5, bootImage)
	p := published{dir: filepath.Join(os.TempDir(), fmt.Sprintf("cairn-update-test-%d", os.Getpid())), targets: map[string][]byte{}}
	check(os.Mkdir(p.dir, 0o700))
	var rootHash string
	p.root, rootHash = withTree(fresh)
	p.boot = slices.Concat(noise(6, 20_000), oldBoot[20_000:70_000], noise(7, bootImage-70_000))
	p.manifest = release.Manifest{
		Info: next, Target: "amd64", Config: 1,
		Images: []release.Image{p.publish("boot", p.boot, bootImage), p.publish("root", p.root, int64(len(fresh)+verityBlock))},
	}
	p.manifest.Images[1].RootHash = rootHash
	p.parts = map[string][]byte{
		"boot-a": partitionOf(bootPartition, oldBoot), "root-a": partitionOf(rootPartition, oldRoot),
		// A release of long ago is in the inactive slot.
		"boot-b": partitionOf(bootPartition, noise(8, bootPartition-5000)), "root-b": partitionOf(rootPartition, noise(9, 400_000)),
	}
	return p
})

func TestMain(m *testing.M) {
	code := m.Run()
	check(os.RemoveAll(theRelease().dir))
	os.Exit(code)
}

// check ends the tests when what they all stand on cannot be made.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// newWorld is a machine before its upgrade.
func newWorld(t testing.TB) *world {
	t.Helper()
	p := theRelease()
	m := p.manifest
	m.Images = slices.Clone(m.Images)
	w := &world{
		t: t, dir: p.dir, targets: maps.Clone(p.targets), manifest: m, boot: p.boot, root: p.root, upgrade: filepath.Join(t.TempDir(), "upgrade"),
		channel: release.Channel{Version: next.Version},
		disk:    &disk{t: t, state: slot.New(slot.A), runs: slot.A, forgot: map[string]bool{}, parts: clone(p.parts)},
	}
	w.start()
	return w
}

func partitionOf(size int, content []byte) []byte {
	return append(bytes.Clone(content), make([]byte, size-len(content))...)
}

// publish puts an image into the release directory.
func (p *published) publish(name string, data []byte, covered int64) release.Image {
	x, err := chunk.MakeIndex(bytes.NewReader(data[:covered]), testParams)
	check(err)
	codec, err := chunk.NewCodec()
	check(err)
	defer codec.Close()
	store, sizes, at := chunk.NewStore(p.dir), make(chunk.Sizes, len(x.Chunks)), 0
	zeros := x.Zeros()
	for i, c := range x.Chunks {
		if !zeros[i] {
			sizes[i], err = store.Put(codec, c.ID, data[at:at+c.Size])
			check(err)
		}
		at += c.Size
	}
	path := release.IndexPath("amd64", next.Version, name)
	p.targets[path], err = x.Encode()
	check(err)
	p.targets[chunk.SizesPath(path)], err = sizes.Encode()
	check(err)
	sum := sha256.Sum256(data)
	return release.Image{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Index: path, Data: covered}
}

// start is what a start of the machine does: a new history and engine.
func (w *world) start() *Engine {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h, err := history.Open(w.upgrade, log)
	if err != nil {
		w.t.Fatal(err)
	}
	call := func(name string) func(context.Context) error {
		return func(context.Context) error {
			w.calls = append(w.calls, name)
			return w.disk.happen(event{call: name})
		}
	}
	w.o = Options{
		Trust: w, Chunks: w, Slots: w.disk, Bootloader: w.disk, History: h, Running: running, Log: log, Now: func() time.Time { return noon },
		Callbacks: Callbacks{
			Snapshot: func(context.Context) (string, error) { return "before-1.1.0", call("snapshot")(nil) },
			Drain:    call("drain"), Reboot: call("reboot"),
		},
	}
	return New(w.o)
}

// wantWhole checks that slot b is the release and armed, and slot a what it was.
func (w *world) wantWhole(before map[string][]byte) {
	w.t.Helper()
	if !bytes.HasPrefix(w.disk.parts["boot-b"], w.boot) || !bytes.HasPrefix(w.disk.parts["root-b"], w.root) {
		w.t.Error("slot b is not the release")
	}
	w.wantSlotA(before)
	if want := (slot.State{Seq: w.disk.state.Seq, Confirmed: slot.A, Trial: slot.B, Tries: slot.DefaultTries}); w.disk.state != want {
		w.t.Errorf("boot selector: %s; want %s", w.disk.state, want)
	}
}

func (w *world) wantSlotA(before map[string][]byte) {
	w.t.Helper()
	if !bytes.Equal(w.disk.parts["boot-a"], before["boot-a"]) || !bytes.Equal(w.disk.parts["root-a"], before["root-a"]) {
		w.t.Error("the running slot was written")
	}
}

func clone(parts map[string][]byte) map[string][]byte {
	c := maps.Clone(parts)
	for k, v := range c {
		c[k] = bytes.Clone(v)
	}
	return c
}
