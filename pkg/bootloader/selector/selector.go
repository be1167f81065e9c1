// Package selector models what starts a machine before any of our code runs:
// GRUB with images/<target>/grub.cfg, and the Raspberry Pi's firmware with
// autoboot.txt. Given the files of a disk it tells which slot is started, what
// is written back and what is said.
//
// The models are for tests that judge very many disks: the conformance suite of
// the boot loaders' backends and the sweep over power cuts. The model of GRUB is
// held against real GRUB, row by row, by pkg/build/grub.
package selector

import (
	"crypto/sha256"

	"github.com/cairn-os/cairn/pkg/slot"
)

// Disk is what a selector sees of the disk that it came from. A partition is
// named as in package partition, a file by its slash-separated path, without
// regard to case as FAT has it. A file that is missing, a folder or on a
// partition without a file system is an error; so is one that cannot be read.
type Disk interface {
	// Size returns a file's length in bytes.
	Size(partition, path string) (int64, error)
	// Head returns the first n bytes of a file, or all when it has fewer.
	Head(partition, path string, n int) ([]byte, error)
	// Sum returns the SHA-256 of a whole file. Kernels are large and the same
	// on most disks of a sweep: keep sums by content.
	Sum(partition, path string) ([sha256.Size]byte, error)
	// Write overwrites the sectors of a file of CAIRN_SYS; data has its
	// length. An error is a medium that refuses.
	Write(path string, data []byte) error
}

// Boot is what a selector did.
type Boot struct {
	Slot     slot.Slot // whose kernel runs; slot.None: nothing was started
	Cmdline  string    // that the slot brought, where the selector reads it
	Writes   []Write   // to CAIRN_SYS, in order; those refused too
	Messages []string  // on the console
}

// Write is one overwriting of a file.
type Write struct {
	Path string
	Data []byte
}

func (b *Boot) say(text string) { b.Messages = append(b.Messages, text) }
