package sweep

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/cairn-os/cairn/pkg/bootloader/grubenv"
	"github.com/cairn-os/cairn/pkg/bootloader/selector"
	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

const (
	fatSize  = 34 << 20 // the least that FAT32 takes
	rootSize = 1 << 20
)

// parts is the table of a small machine.
func parts() []partition.Partition {
	all := partition.Table(true)
	start := int64(partition.MiB)
	for i, p := range all {
		all[i].Start = start
		switch p.Name {
		case partition.System, partition.BootA, partition.BootB:
			all[i].Size = fatSize
		default:
			all[i].Size = 2 * partition.MiB
		}
		start += all[i].Size
	}
	return all
}

func partOf(name string) partition.Partition {
	p, _ := partition.Find(parts(), name)
	return p
}

// kernel is what GRUB takes for a Linux kernel.
func kernel(version string) []byte {
	k := bytes.Repeat([]byte(version), 48<<10/len(version))
	k[0x1f1] = 4
	k[0x1fe], k[0x1ff] = 0x55, 0xaa
	copy(k[0x202:], "HdrS")
	k[0x206], k[0x207], k[0x211] = 0x0f, 0x02, 1
	return k
}

// bootContent is a boot partition's files.
func bootContent(t testing.TB, version string) map[string][]byte {
	t.Helper()
	env, err := slot.EncodeBlock(2560, slot.Variable{Name: "cmdline", Value: "cairn.roothash=" + version})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"vmlinuz": kernel(version), "initramfs.img": bytes.Repeat([]byte("initramfs "+version), 1000), "slot.env": env,
	}
	var sums bytes.Buffer
	for _, name := range bootFiles {
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(files[name]), name)
	}
	files["sha256sums"] = sums.Bytes()
	files[loaderPath] = []byte("grub")
	return files
}

func root(version string) []byte {
	return bytes.Repeat([]byte(version+"."), rootSize/len(version+"."))[:rootSize/4096*4096-4096]
}

// shared is what all tests start from and none changes.
var shared struct {
	once  sync.Once
	dir   string
	image string // version old in slot a, which is confirmed
	boot  []byte // the new version's boot image
}

func TestMain(m *testing.M) {
	var err error
	if shared.dir, err = os.MkdirTemp("", "sweep"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(shared.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// machine is a small disk: version old in slot a, which is confirmed.
func machine(t testing.TB) (image string, boot []byte) {
	t.Helper()
	shared.once.Do(func() {
		shared.image = newMachine(t, filepath.Join(shared.dir, "disk.img"))
		shared.boot = newBoot(t)
	})
	if shared.boot == nil {
		t.Fatal("there is no machine")
	}
	return shared.image, shared.boot
}

// newBoot makes the new boot image on a copy of the machine and reads it there.
func newBoot(t testing.TB) []byte {
	t.Helper()
	made := filepath.Join(shared.dir, "new.img")
	if err := disk.Copy(shared.image, made); err != nil {
		t.Fatal(err)
	}
	if err := disk.Put(made, partition.BootB, bootContent(t, "new")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(made)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	boot := make([]byte, 1<<20)
	if _, err := f.ReadAt(boot, partOf(partition.BootB).Start); err != nil {
		t.Fatal(err)
	}
	return boot
}

func newMachine(t testing.TB, image string) string {
	t.Helper()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(partition.DiskSize(parts())); err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true}
	for _, p := range parts() {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: p.Number, Name: p.Name, Type: gpt.Type(p.Type),
			Start: uint64(p.Start) / 512, End: uint64(p.Start+p.Size)/512 - 1, Size: uint64(p.Size),
		})
	}
	w, err := file.New(f, false).Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(w, partition.DiskSize(parts())); err != nil {
		t.Fatal(err)
	}
	for name, label := range map[string]string{partition.System: "CAIRN_SYS", partition.BootA: "CAIRN_BOOTA", partition.BootB: "CAIRN_BOOTB"} {
		p := partOf(name)
		if _, err := fat32.Create(file.New(f, false), p.Size, p.Start, 512, label, true); err != nil {
			t.Fatal(err)
		}
	}
	state := func(s slot.State) []byte {
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	empty, err := slot.EncodeBlock(slot.Size)
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string]map[string][]byte{
		partition.System: {
			disk.StateFiles[0]: state(slot.New(slot.A)), disk.StateFiles[1]: state(slot.State{Confirmed: slot.A, Trial: slot.None}),
			"cairn/trial.env": empty, loaderPath: []byte("grub"),
		},
		partition.BootA: bootContent(t, "old"),
	} {
		if err := disk.Put(image, name, files); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(root("old"), partOf(partition.RootA).Start); err != nil {
		t.Fatal(err)
	}
	return image
}

// upgrade is a machine under a recorder, and the parts of an upgrade's writes.
type upgrade struct {
	t      testing.TB
	image  string // the first state
	log    string
	disk   *Recorder
	system *System
	store  *grubenv.Store
	boot   []byte // the new version's boot image
}

func newUpgrade(t testing.TB) *upgrade {
	t.Helper()
	u := &upgrade{t: t}
	u.image, u.boot = machine(t)
	dir := t.TempDir()
	work := filepath.Join(dir, "disk.img")
	u.log = filepath.Join(dir, "log")
	if err := disk.Copy(u.image, work); err != nil {
		t.Fatal(err)
	}
	var err error
	if u.disk, err = NewRecorder(work, u.log); err != nil {
		t.Fatal(err)
	}
	if u.system, err = u.disk.System(); err != nil {
		t.Fatal(err)
	}
	u.store = grubenv.New(u.system)
	return u
}

func (u *upgrade) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgrade) write(name string, offset int64, data []byte, step int) {
	u.t.Helper()
	for at := 0; at < len(data); at += step {
		_, err := u.disk.WriteAt(data[at:min(at+step, len(data))], partOf(name).Start+offset+int64(at))
		u.must(err)
	}
}

func (u *upgrade) sync()             { u.t.Helper(); u.must(u.disk.Sync()) }
func (u *upgrade) phase(name string) { u.t.Helper(); u.must(u.disk.Phase(name)) }

func (u *upgrade) invalidate() { u.write(partition.BootB, 0, make([]byte, 4096), 4096); u.sync() }

func (u *upgrade) root() {
	data := root("new")
	for at := 0; at < len(data); at += 128 << 10 {
		u.write(partition.RootB, int64(at), data[at:min(at+128<<10, len(data))], 16<<10)
		u.sync()
	}
}

func (u *upgrade) bootFiles() {
	u.write(partition.BootB, 4096, u.boot[4096:], 64<<10)
	u.sync()
	u.write(partition.BootB, 0, u.boot[:4096], 4096)
	u.sync()
}

func (u *upgrade) arm() {
	_, err := u.store.Arm(slot.B, slot.DefaultTries)
	u.must(err)
}

// start is what the selector does at power-on.
func (u *upgrade) start() {
	s, err := u.store.Read()
	u.must(err)
	_, next, err := s.Attempt()
	u.must(err)
	data, err := next.Encode()
	u.must(err)
	for _, name := range disk.StateFiles {
		now, err := u.system.Read(name)
		u.must(err)
		if old, err := slot.Decode(now); err == nil && old == s {
			u.must(u.system.Overwrite(name, data))
			return
		}
	}
}

func (u *upgrade) confirm() {
	_, err := u.store.Confirm(slot.B)
	u.must(err)
}

// record ends the recording and opens it.
func (u *upgrade) record() (Recording, Options) {
	u.t.Helper()
	u.must(u.disk.Close())
	rec, done, err := Open(u.image, u.log)
	u.must(err)
	u.t.Cleanup(func() { u.must(done()) })
	boot := partOf(partition.BootA)
	oldBoot := io.NewSectionReader(rec.Base, boot.Start, boot.Size)
	old, err := ReadRelease("old", oldBoot, boot.Size, bytes.NewReader(root("old")), int64(len(root("old"))))
	u.must(err)
	whole := append(bytes.Clone(u.boot), make([]byte, fatSize-len(u.boot))...)
	now, err := ReadRelease("new", bytes.NewReader(whole), fatSize, bytes.NewReader(root("new")), int64(len(root("new"))))
	u.must(err)
	return *rec, Options{Releases: []Release{old, now}, Selector: selector.GRUB, Seed: 1}
}

func sweep(t testing.TB, rec Recording, o Options) Report {
	t.Helper()
	r, err := Sweep(t.Context(), rec, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// remake writes the state files as a careless program does: it cuts each file
// to nothing and writes it again.
func (u *upgrade) remake(s slot.State) {
	u.t.Helper()
	data, err := s.Encode()
	u.must(err)
	for _, name := range disk.StateFiles {
		u.must(u.system.Overwrite(name, nil))
	}
	for _, name := range disk.StateFiles {
		u.must(u.system.Overwrite(name, data))
	}
}
