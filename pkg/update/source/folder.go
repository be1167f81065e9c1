package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// folder is a release directory in the file system: a USB stick that is mounted, or a share.
type folder struct {
	dir string
}

var _ Source = folder{}

func (f folder) String() string  { return "file://" + f.dir }
func (f folder) Received() int64 { return 0 }
func (f folder) Close()          {}

func (f folder) Fetch(ctx context.Context, path string, offset, limit int64) (io.ReadCloser, error) {
	if err := checkRequest(path, offset, limit); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", path, err)
	}
	name := filepath.Join(f.dir, path)
	// O_NONBLOCK: a pipe of that name would make open wait for ever.
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, f.explain(name, err)
	}
	size, err := seek(file, offset, limit)
	if err != nil {
		return nil, errors.Join(f.explain(name, err), file.Close())
	}
	return &folderReader{ctx: ctx, folder: f, file: file, left: size - offset}, nil
}

// seek looks at what file is, goes to offset, and returns the file's size.
func seek(file *os.File, offset, limit int64) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	switch {
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("is no file but a %v: copy the release directory anew", info.Mode().Type())
	case info.Size() > limit:
		return 0, fmt.Errorf("%w: it has %d bytes and may have %d: copy the release directory anew", ErrTooLarge, info.Size(), limit)
	case info.Size() < offset:
		return 0, fmt.Errorf("%w: it has %d bytes and byte %d is wanted: copy the release directory anew", ErrChanged, info.Size(), offset)
	}
	_, err = file.Seek(offset, io.SeekStart)
	return info.Size(), err
}

// explain says what err of the file name means to who copied the release.
func (f folder) explain(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, dirErr := os.Stat(f.dir); dirErr != nil {
			return fmt.Errorf("fetch %s: %w: the folder %s is missing: is the stick plugged in and mounted?", name, ErrUnavailable, f.dir)
		}
		return fmt.Errorf("fetch %s: %w: was the whole release directory copied?", name, ErrNotFound)
	}
	var number syscall.Errno
	if errors.As(err, &number) && number == syscall.EIO {
		return fmt.Errorf("fetch %s: the disk cannot be read: was the stick pulled out? Else copy the release to another one: %w", name, err)
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err // names the file once more
	}
	return fmt.Errorf("fetch %s: %w", name, err)
}

// folderReader reads exactly as many bytes as the file had when it was opened.
type folderReader struct {
	ctx    context.Context
	folder folder
	file   *os.File
	left   int64
}

func (r *folderReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if err := context.Cause(r.ctx); err != nil {
		return 0, fmt.Errorf("fetch %s: %w", r.file.Name(), err)
	}
	n, err := r.file.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		return n, fmt.Errorf("fetch %s: %w: %d bytes are missing", r.file.Name(), ErrChanged, r.left)
	}
	if err != nil {
		return n, r.folder.explain(r.file.Name(), err)
	}
	return n, nil
}

func (r *folderReader) Close() error { return r.file.Close() }
