package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

const (
	// headSize is how much of the boot partition is withheld until all else is in place: FAT's boot sector, its spare
	// copy and all that a firmware or boot loader looks at to find a file system.
	headSize = 4096
	// block is the unit in which the slot is compared and written, in bytes.
	block = 4096
	// syncEvery bounds what waits in memory to be written, in bytes.
	syncEvery = 16 << 20
)

// guard makes sure that no byte of the inactive slot is written while it has a boot file system.
type guard struct {
	boot    Device
	done    bool // the boot file system is gone
	written *int64
}

// invalidate is called before every write.
func (g *guard) invalidate() error {
	if g.done {
		return nil
	}
	if err := writeHead(g.boot, make([]byte, headSize), g.written); err != nil {
		return fmt.Errorf("invalidate the inactive slot: %w", err)
	}
	g.done = true
	return nil
}

// writeHead replaces the first bytes of the boot partition on the medium, and reads them back.
func writeHead(boot Device, head []byte, written *int64) error {
	got := make([]byte, headSize)
	if _, err := boot.ReadAt(got, 0); err == nil && bytes.Equal(got, head) {
		// They may be in memory only.
		if err := boot.Sync(); err != nil {
			return err
		}
		return checkHead(boot, head)
	}
	if _, err := boot.WriteAt(head, 0); err != nil {
		return err
	}
	*written += headSize
	if err := boot.Sync(); err != nil {
		return err
	}
	return checkHead(boot, head)
}

func checkHead(boot Device, head []byte) error {
	if err := boot.Forget(); err != nil {
		return err
	}
	got := make([]byte, headSize)
	if _, err := boot.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, head) {
		return fmt.Errorf("first %d bytes of the boot partition: %w", headSize, ErrMedium)
	}
	return nil
}

// writer puts bytes on one device of the inactive slot, unless they are there.
type writer struct {
	dev     Device
	guard   *guard
	head    []byte // of the boot partition: withheld; nil for the root
	written *int64
	waiting int64
	buf     []byte
}

// write makes the device hold data at offset. What is equal in a whole block is not written again: a slot that held a
// release before has much in common with the next one, and flash wears.
func (w *writer) write(data []byte, offset int64) error {
	if n := int64(len(w.head)) - offset; n > 0 {
		n = min(n, int64(len(data)))
		copy(w.head[offset:], data[:n])
		data, offset = data[n:], offset+n
	}
	if len(w.buf) < len(data) {
		w.buf = make([]byte, len(data))
	}
	there := w.buf[:len(data)]
	if _, err := w.dev.ReadAt(there, offset); err != nil {
		// A block that cannot be read is one that differs: writing may heal it.
		return w.put(data, offset)
	}
	for at := 0; at < len(data); {
		end := nextBlock(offset, at, len(data))
		if bytes.Equal(data[at:end], there[at:end]) {
			at = end
			continue
		}
		from := at
		for at = end; at < len(data); at = end {
			if end = nextBlock(offset, at, len(data)); bytes.Equal(data[at:end], there[at:end]) {
				break
			}
		}
		if err := w.put(data[from:at], offset+int64(from)); err != nil {
			return err
		}
	}
	return nil
}

// nextBlock returns where, in data that begin at offset of the device and have length bytes, the block ends that at is
// in.
func nextBlock(offset int64, at, length int) int {
	return min(length, at+block-int((offset+int64(at))%block))
}

func (w *writer) put(data []byte, offset int64) error {
	if len(data) == 0 {
		return nil
	}
	if err := w.guard.invalidate(); err != nil {
		return err
	}
	if _, err := w.dev.WriteAt(data, offset); err != nil {
		return err
	}
	*w.written += int64(len(data))
	if w.waiting += int64(len(data)); w.waiting >= syncEvery {
		return w.sync()
	}
	return nil
}

func (w *writer) sync() error {
	w.waiting = 0
	return w.dev.Sync()
}

// digest hashes the first size bytes of dev as the medium has them; head, when it is not nil, stands for the first ones.
func digest(ctx context.Context, dev Device, size int64, head []byte, progress func(done int64)) (string, error) {
	if err := dev.Sync(); err != nil {
		return "", err
	}
	if err := dev.Forget(); err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(head)
	buf := make([]byte, 1<<20)
	for at := int64(len(head)); at < size; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		b := buf[:min(int64(len(buf)), size-at)]
		if _, err := dev.ReadAt(b, at); err != nil {
			return "", err
		}
		h.Write(b)
		at += int64(len(b))
		progress(at)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
