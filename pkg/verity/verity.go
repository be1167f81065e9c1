// Package verity opens a partition through dm-verity, so that every block read from it is checked against the root
// hash that the boot selector passed on.
//
// The partition holds <blocks> data blocks, then a superblock in cryptsetup's format, then the hash tree. A block that
// does not match is never handed out: the reader gets EIO (a mapped program SIGBUS), and the kernel logs
// "device-mapper: verity: ... data block N is corrupted". The stronger options (panic_on_corruption,
// restart_on_corruption) are not used: on a confirmed slot one bad block in a program that hardly ever runs would turn a
// working shop into a boot loop. What must not run half is caught anyway: Open reads the first block, the boot ends on
// the emergency screen when a system file cannot be read, a corrupted PID 1 ends in a kernel panic, and a trial slot
// whose services cannot start is never confirmed.
package verity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/go-dmverity/pkg/dm"
	dmverity "github.com/containerd/go-dmverity/pkg/verity"
	"golang.org/x/sys/unix"
)

// BlockSize is the size of data and hash blocks in bytes; no other is accepted.
const BlockSize = 4096

// hashSize is SHA-256's, in bytes.
const hashSize = 32

// ErrCorrupt says that the device does not hold what the root hash stands for.
var ErrCorrupt = errors.New("the root file system is corrupted")

// Root identifies a verified file system.
type Root struct {
	Hash   string // 64 hexadecimal digits
	Blocks uint64 // of data; the superblock follows
}

// Validate reports what is wrong with r itself.
func (r Root) Validate() error {
	if b, err := hex.DecodeString(r.Hash); err != nil || len(b) != hashSize {
		return fmt.Errorf("root hash %q: not %d hexadecimal digits", r.Hash, 2*hashSize)
	}
	if r.Blocks == 0 || r.Blocks > 1<<40 {
		return fmt.Errorf("root blocks %d: not the size of a file system", r.Blocks)
	}
	return nil
}

// Target is the line of a device-mapper table.
type Target struct {
	Sectors uint64 // length in units of 512 bytes
	Params  string
}

// Table reads the superblock from device and returns the device-mapper target of r. device is what the kernel will
// open: a path or "major:minor".
func Table(device io.ReaderAt, name string, r Root) (Target, error) {
	if err := r.Validate(); err != nil {
		return Target{}, fmt.Errorf("verity: %w", err)
	}
	offset := r.Blocks * BlockSize
	sb, err := dmverity.ReadSuperblock(device, offset)
	if err != nil {
		return Target{}, fmt.Errorf("verity: superblock at block %d: %w: %w", r.Blocks, ErrCorrupt, err)
	}
	algorithm, _, _ := strings.Cut(string(sb.Algorithm[:]), "\x00")
	if sb.HashType != 1 || algorithm != "sha256" || sb.DataBlockSize != BlockSize || sb.HashBlockSize != BlockSize || int(sb.SaltSize) > len(sb.Salt) {
		return Target{}, fmt.Errorf("verity: superblock at block %d: hash type %d, %q, blocks of %d and %d bytes are not supported: %w",
			r.Blocks, sb.HashType, algorithm, sb.DataBlockSize, sb.HashBlockSize, ErrCorrupt)
	}
	if sb.DataBlocks != r.Blocks {
		return Target{}, fmt.Errorf("verity: superblock counts %d blocks, the boot entry %d: %w", sb.DataBlocks, r.Blocks, ErrCorrupt)
	}
	hash, err := hex.DecodeString(r.Hash)
	if err != nil {
		return Target{}, fmt.Errorf("verity: root hash: %w", err)
	}
	params, err := dm.BuildTargetParams(dm.OpenArgs{
		Version: 1, DataDevice: name, HashDevice: name, DataBlockSize: BlockSize, HashBlockSize: BlockSize,
		DataBlocks: r.Blocks, HashName: algorithm, RootDigest: hash, Salt: sb.Salt[:sb.SaltSize],
		HashStartBytes: offset + BlockSize,
	})
	if err != nil {
		return Target{}, fmt.Errorf("verity: %w", err)
	}
	return Target{Sectors: r.Blocks * (BlockSize / 512), Params: params}, nil
}

// Open maps the partition at path as the read-only device /dev/mapper name and returns its path (/dev/dm-N). It reads
// one block, which checks one branch of the hash tree against the root hash; a mismatch wraps ErrCorrupt.
func Open(name, path string, r Root) (device string, err error) {
	part, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("verity: %w", err)
	}
	defer part.Close()
	target, err := Table(part, path, r)
	if err != nil {
		return "", err
	}
	ctl, err := dm.Open()
	if err != nil {
		return "", fmt.Errorf("verity: the kernel has no device mapper: %w", err)
	}
	defer ctl.Close()
	dev, err := ctl.CreateDevice(name)
	if err != nil {
		return "", fmt.Errorf("verity: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ctl.RemoveDevice(name))
		}
	}()
	if err := ctl.LoadTable(name, []dm.Target{{Length: target.Sectors, Type: "verity", Params: target.Params}}); err != nil {
		return "", fmt.Errorf("verity: table %q: %w", target.Params, err)
	}
	if err := ctl.SuspendDevice(name, false); err != nil {
		return "", fmt.Errorf("verity: %w", err)
	}
	device = fmt.Sprintf("/dev/dm-%d", unix.Minor(dev))
	return device, check(device)
}

// check reads the device's first block past the page cache's idea of it.
func check(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("verity: %w", err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, BlockSize), 0); err != nil {
		if errors.Is(err, unix.EIO) {
			return fmt.Errorf("verity: dm-verity refused block 0: %w", ErrCorrupt)
		}
		return fmt.Errorf("verity: %w", err)
	}
	return nil
}
