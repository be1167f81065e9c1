// Package initramfs writes the archive that the kernel unpacks as its first
// root: the static init, the console's device node and the mount points that
// the first boot stage needs, and nothing else.
package initramfs

import (
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// directories are the mount points of the first stage.
var directories = []string{"dev", "proc", "run", "sys", "sysroot"}

// Build writes the initramfs around the static program at initBinary to w: a
// cpio archive of the newc format, compressed with zstd. The output depends on
// the program's bytes alone.
func Build(initBinary string, w io.Writer) error {
	program, err := os.ReadFile(initBinary)
	if err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	if err := write(w, records(program)); err != nil {
		return fmt.Errorf("build initramfs around %s: %w", initBinary, err)
	}
	return nil
}

// records is the archive's content. Inode numbers must differ: the kernel
// takes files of one number for hard links.
func records(program []byte) []cpio.Record {
	all := []cpio.Record{cpio.Directory(".", 0o755)}
	for _, d := range directories {
		all = append(all, cpio.Directory(d, 0o755))
	}
	all = append(all,
		cpio.CharDev("dev/console", 0o600, 5, 1), // PID 1's standard streams, opened before init can mount devtmpfs
		cpio.StaticFile("init", string(program), 0o755),
	)
	for i := range all {
		all[i].Info = cpio.MakeReproducible(all[i]).Info
		all[i].Ino = uint64(i + 1)
		all[i].NLink = 1
	}
	return all
}

func write(w io.Writer, all []cpio.Record) error {
	// One encoder goroutine: how work is split must not shape the output.
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	archive := cpio.Newc.Writer(z)
	if err := cpio.WriteRecords(archive, all); err != nil {
		return err
	}
	if err := cpio.WriteTrailer(archive); err != nil {
		return err
	}
	return z.Close()
}
