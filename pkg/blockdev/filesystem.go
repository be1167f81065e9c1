package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Content is what a partition holds, as far as the boot must know.
type Content string

// The contents told apart.
const (
	Blank   Content = "blank" // only zeros where file systems keep their first structures
	Ext4    Content = "ext4"  // or ext2, ext3
	Unknown Content = "unknown"
)

// probed is how much of a partition must be zero for it to be blank.
const probed = 1 << 20

// Probe looks at the first megabyte of r.
func Probe(r io.ReaderAt) (Content, error) {
	buf := make([]byte, probed)
	n, err := r.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("probe file system: %w", err)
	}
	buf = buf[:n]
	const super, magic = 1024, 0x38 // offsets of the superblock, and of s_magic in it
	if len(buf) >= super+magic+2 && binary.LittleEndian.Uint16(buf[super+magic:]) == 0xef53 {
		return Ext4, nil
	}
	if len(bytes.Trim(buf, "\x00")) == 0 {
		return Blank, nil
	}
	return Unknown, nil
}

// Ext4Size returns the size in bytes of the ext4 file system in r, by its superblock.
func Ext4Size(r io.ReaderAt) (int64, error) {
	var sb [1024]byte
	if _, err := r.ReadAt(sb[:], 1024); err != nil {
		return 0, fmt.Errorf("read ext4 superblock: %w", err)
	}
	le := binary.LittleEndian
	shift := le.Uint32(sb[0x18:])
	if le.Uint16(sb[0x38:]) != 0xef53 || shift > 6 {
		return 0, fmt.Errorf("read ext4 superblock: %w", ErrNotFound)
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	const incompat64bit = 0x80
	if le.Uint32(sb[0x60:])&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	return int64(blocks << (10 + shift)), nil
}
