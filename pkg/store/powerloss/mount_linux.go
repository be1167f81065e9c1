package powerloss

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxWrite is the longest write that the kernel passes on in one piece.
const maxWrite = 1 << 20

// unflushed are the flags that the file beneath is not opened with: it need not
// survive anything, and the kernel truncates by Setattr before it opens.
const unflushed = syscall.O_DIRECT | syscall.O_SYNC | syscall.O_TRUNC

// Recorder is a mounted directory whose changes are logged.
type Recorder struct {
	log    *recorder
	server *fuse.Server
	start  int
}

// Available returns why nothing can be mounted here, nil if it can: it takes
// /dev/fuse and the right to mount.
func Available() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no FUSE: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("no FUSE: capget: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return fmt.Errorf("no FUSE: no right to mount (CAP_SYS_ADMIN) as uid %d", os.Geteuid())
	}
	return nil
}

// Start mounts backing at mount, both existing directories, and logs what
// changes through the mount. The mount may be used by any process, but file
// descriptors of this one must be closed before Stop.
func Start(backing, mount string) (*Recorder, error) {
	log := newRecorder()
	if err := log.scan(backing, root); err != nil {
		return nil, fmt.Errorf("record %s: %w", backing, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, fmt.Errorf("record %s: %w", backing, err)
	}
	data := &fusefs.LoopbackRoot{Path: backing, Dev: uint64(st.Dev)}
	top := &node{LoopbackNode: fusefs.LoopbackNode{RootData: data}, log: log}
	data.RootNode = top
	server, err := fuse.NewServer(&counter{fusefs.NewNodeFS(top, &fusefs.Options{}), log}, mount, &fuse.MountOptions{
		DirectMountStrict: true, FsName: "powerloss", Name: "powerloss", MaxWrite: maxWrite, DisableXAttrs: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s at %s: %w", backing, mount, err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount %s at %s: %w", backing, mount, err)
	}
	return &Recorder{log, server, log.position}, nil
}

// Mark sets a mark and returns its position: what has returned by now is
// before it, what begins later is behind.
func (r *Recorder) Mark(note []byte) int {
	e := &Event{Kind: Mark, Note: note}
	r.log.whole(func() *Event { return e })
	return e.Ended
}

// Stop unmounts and returns the recording. Whoever uses the mount must have
// ended.
func (r *Recorder) Stop() (*Recording, error) {
	if err := r.server.Unmount(); err != nil {
		return nil, fmt.Errorf("unmount: %w", err)
	}
	return r.log.recording(r.start), nil
}

// Record returns what f changes in the directory backing through the mount.
func Record(backing, mount string, f func(dir string) error) (*Recording, error) {
	r, err := Start(backing, mount)
	if err != nil {
		return nil, err
	}
	err = f(mount)
	recording, stopErr := r.Stop()
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return recording, stopErr
}

// counter looks at the flags of each write, which nodes are not shown.
type counter struct {
	fuse.RawFileSystem
	log *recorder
}

func (c *counter) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	c.count(in)
	return c.RawFileSystem.Write(cancel, in, data)
}

// Writev implements fuse.RawFileSystem's way to take what came in pieces.
func (c *counter) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	c.count(in)
	return c.RawFileSystem.Writev(cancel, in, data)
}

func (c *counter) count(in *fuse.WriteIn) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	s := &c.log.stats
	s.Writes++
	s.Bytes += int64(in.Size)
	s.Largest = max(s.Largest, int(in.Size))
	if in.Flags&syscall.O_DIRECT != 0 {
		s.Direct++
	}
	if in.Flags&syscall.O_DSYNC != 0 { // O_SYNC includes it.
		s.Durable++
	}
}

// node is a file or directory that passes through what it logs and refuses
// what it cannot log.
type node struct {
	fusefs.LoopbackNode
	log *recorder
}

// WrapChild makes the nodes below log as well.
func (n *node) WrapChild(_ context.Context, child fusefs.InodeEmbedder) fusefs.InodeEmbedder {
	return &node{LoopbackNode: fusefs.LoopbackNode{RootData: child.(*fusefs.LoopbackNode).RootData}, log: n.log}
}

func (n *node) relative() string { return n.Path(n.Root()) }

func (n *node) full() string { return filepath.Join(n.RootData.Path, n.relative()) }

// Mknod implements fusefs.NodeMknoder.
func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Symlink implements fusefs.NodeSymlinker.
func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Setxattr implements fusefs.NodeSetxattrer.
func (n *node) Setxattr(context.Context, string, []byte, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// CopyFileRange implements fusefs.NodeCopyFileRanger.
func (n *node) CopyFileRange(context.Context, fusefs.FileHandle, uint64, *fusefs.Inode, fusefs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.EOPNOTSUPP
}

// Create implements fusefs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (inode *fusefs.Inode, fh fusefs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	n.log.whole(func() *Event {
		inode, fh, fuseFlags, errno = n.LoopbackNode.Create(ctx, name, flags&^unflushed, mode, out)
		if errno != 0 {
			return nil
		}
		dir, _ := n.log.find(n.relative())
		id, exists := n.log.files[dir].names[name]
		if !exists {
			id = n.log.add(dir, name, false)
		}
		fh = n.handle(fh, id, flags)
		if exists {
			return nil
		}
		return &Event{Kind: Create, File: id, Dir: dir, Name: name, Mode: fs.FileMode(mode).Perm()}
	})
	return inode, fh, fuseFlags, errno
}

// Open implements fusefs.NodeOpener.
func (n *node) Open(ctx context.Context, flags uint32) (fh fusefs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	n.log.whole(func() *Event {
		fh, fuseFlags, errno = n.LoopbackNode.Open(ctx, flags&^unflushed)
		if errno != 0 {
			return nil
		}
		id, _ := n.log.find(n.relative())
		fh = n.handle(fh, id, flags)
		return nil
	})
	return fh, fuseFlags, errno
}

// Mkdir implements fusefs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (inode *fusefs.Inode, errno syscall.Errno) {
	n.log.whole(func() *Event {
		if inode, errno = n.LoopbackNode.Mkdir(ctx, name, mode, out); errno != 0 {
			return nil
		}
		dir, _ := n.log.find(n.relative())
		return &Event{Kind: Mkdir, File: n.log.add(dir, name, true), Dir: dir, Name: name, Mode: fs.FileMode(mode).Perm()}
	})
	return inode, errno
}

// Link implements fusefs.NodeLinker.
func (n *node) Link(ctx context.Context, target fusefs.InodeEmbedder, name string, out *fuse.EntryOut) (inode *fusefs.Inode, errno syscall.Errno) {
	n.log.whole(func() *Event {
		id, _ := n.log.find(target.EmbeddedInode().Path(n.Root()))
		if inode, errno = n.LoopbackNode.Link(ctx, target, name, out); errno != 0 {
			return nil
		}
		dir, _ := n.log.find(n.relative())
		n.log.files[dir].names[name] = id
		return &Event{Kind: Link, File: id, Dir: dir, Name: name}
	})
	return inode, errno
}

// Unlink implements fusefs.NodeUnlinker.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(name, func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) })
}

// Rmdir implements fusefs.NodeRmdirer.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(name, func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) })
}

func (n *node) remove(name string, op func() syscall.Errno) (errno syscall.Errno) {
	n.log.whole(func() *Event {
		if errno = op(); errno != 0 {
			return nil
		}
		dir, _ := n.log.find(n.relative())
		names := n.log.files[dir].names
		e := &Event{Kind: Remove, File: names[name], Dir: dir, Name: name}
		delete(names, name)
		return e
	})
	return errno
}

// Rename implements fusefs.NodeRenamer.
func (n *node) Rename(ctx context.Context, name string, parent fusefs.InodeEmbedder, newName string, flags uint32) (errno syscall.Errno) {
	if flags&unix.RENAME_WHITEOUT != 0 {
		return syscall.EINVAL
	}
	n.log.whole(func() *Event {
		if errno = n.LoopbackNode.Rename(ctx, name, parent, newName, flags); errno != 0 {
			return nil
		}
		from, _ := n.log.find(n.relative())
		to, _ := n.log.find(parent.EmbeddedInode().Path(n.Root()))
		old, renamed := n.log.files[from].names, n.log.files[to].names
		e := &Event{Kind: Rename, File: old[name], Dir: from, Name: name, ToDir: to, ToName: newName}
		if flags&unix.RENAME_EXCHANGE != 0 {
			e.Kind = Exchange
			old[name], renamed[newName] = renamed[newName], old[name]
			return e
		}
		delete(old, name)
		renamed[newName] = e.File
		return e
	})
	return errno
}

// Setattr implements fusefs.NodeSetattrer. Owners and times are passed through
// and not logged.
func (n *node) Setattr(ctx context.Context, fh fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) (errno syscall.Errno) {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	// By the descriptor if there is one: the file may have no name any more.
	var id uint64
	if h, ok := fh.(*handle); ok {
		id = h.id
		errno = h.file.Setattr(ctx, in, out)
	} else {
		id, _ = n.log.find(n.relative())
		errno = n.LoopbackNode.Setattr(ctx, nil, in, out)
	}
	if errno != 0 {
		return errno
	}
	if mode, ok := in.GetMode(); ok {
		n.log.done(&Event{Kind: Chmod, File: id, Mode: fs.FileMode(mode).Perm()})
	}
	if size, ok := in.GetSize(); ok {
		n.log.done(&Event{Kind: Truncate, File: id, Size: int64(size)})
	}
	return 0
}

// Fsync implements fusefs.NodeFsyncer for files. The file system beneath
// flushes nothing: what survives is what the log says.
func (n *node) Fsync(_ context.Context, fh fusefs.FileHandle, _ uint32) syscall.Errno {
	h, ok := fh.(*handle)
	if !ok {
		return syscall.EBADF
	}
	n.log.end(n.log.begin(&Event{Kind: Sync, File: h.id}))
	return 0
}

// OpendirHandle implements fusefs.NodeOpendirHandler.
func (n *node) OpendirHandle(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	stream, errno := fusefs.NewLoopbackDirStream(n.full())
	if errno != 0 {
		return nil, 0, errno
	}
	return &directory{stream.(listing), n}, 0, 0
}

// listing is what a directory's handle has to offer.
type listing interface {
	fusefs.FileReaddirenter
	fusefs.FileSeekdirer
	fusefs.FileReleasedirer
}

// directory is an open directory.
type directory struct {
	listing
	node *node
}

// Fsyncdir implements fusefs.FileFsyncdirer.
func (d *directory) Fsyncdir(context.Context, uint32) syscall.Errno {
	log := d.node.log
	log.mu.Lock()
	id, ok := log.find(d.node.relative())
	log.mu.Unlock()
	if !ok {
		return syscall.EIO
	}
	log.end(log.begin(&Event{Kind: Sync, File: id}))
	return 0
}

// handle is an open file.
type handle struct {
	file    *fusefs.LoopbackFile
	log     *recorder
	id      uint64
	durable bool
}

func (n *node) handle(fh fusefs.FileHandle, id uint64, flags uint32) *handle {
	return &handle{file: fh.(*fusefs.LoopbackFile), log: n.log, id: id, durable: flags&syscall.O_DSYNC != 0}
}

// Read implements fusefs.FileReader.
func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return h.file.Read(ctx, dest, off)
}

// Write implements fusefs.FileWriter.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	e := h.log.begin(&Event{Kind: Write, File: h.id, Offset: off, Data: bytes.Clone(data), Durable: h.durable})
	n, errno := h.file.Write(ctx, data, off)
	if errno != 0 || int(n) != len(data) {
		// The log says it was all written: better none than a wrong one.
		return 0, syscall.EIO
	}
	h.log.end(e)
	return n, 0
}

// Allocate implements fusefs.FileAllocater.
func (h *handle) Allocate(ctx context.Context, off, size uint64, mode uint32) (errno syscall.Errno) {
	if mode != 0 { // Holes, kept sizes.
		return syscall.EOPNOTSUPP
	}
	h.log.whole(func() *Event {
		if errno = h.file.Allocate(ctx, off, size, 0); errno != 0 {
			return nil
		}
		return &Event{Kind: Allocate, File: h.id, Size: int64(off + size), Durable: h.durable}
	})
	return errno
}

// Getattr implements fusefs.FileGetattrer.
func (h *handle) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return h.file.Getattr(ctx, out)
}

// Flush implements fusefs.FileFlusher.
func (h *handle) Flush(ctx context.Context) syscall.Errno { return h.file.Flush(ctx) }

// Release implements fusefs.FileReleaser.
func (h *handle) Release(ctx context.Context) syscall.Errno { return h.file.Release(ctx) }
