package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/build/progress"
)

// window is how far back the compressor looks: what any zstd accepts unasked.
const window = 8 << 20

// Compress writes the zstd form of the image in to the path out. The same
// input gives the same output, whatever the machine.
func Compress(ctx context.Context, in, out string) (err error) {
	step := progress.FromContext(ctx).Start("disk: compress")
	defer step.Done(&err)
	src, err := os.Open(in)
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	defer src.Close()
	tmp := out + ".tmp"
	dst, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	if err := errors.Join(compress(ctx, dst, src), dst.Close()); err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", in, err), os.Remove(tmp))
	}
	return os.Rename(tmp, out)
}

func compress(ctx context.Context, dst io.Writer, src io.Reader) error {
	// One goroutine: with more, how writes fall into blocks could vary.
	z, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := io.ReadFull(src, buf)
		if _, err := z.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return z.Close()
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Copy copies an image and keeps its holes. It replaces out when the copy is
// whole.
func Copy(in, out string) error {
	src, err := os.Open(in)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer src.Close()
	tmp := out + ".tmp"
	dst, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := errors.Join(copySparse(dst, src), dst.Close()); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", in, err), os.Remove(tmp))
	}
	return os.Rename(tmp, out)
}

func copySparse(dst, src *os.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole to the end
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start)); err != nil {
			return err
		}
	}
}
