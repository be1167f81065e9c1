package disk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/partition"
)

// dataOptions are given in full, so that no configuration file counts.
var dataOptions = []string{
	"-q", "-F", "-t", "ext4", "-L", partition.Data, "-b", "4096", "-I", "256",
	"-i", "16384", // bytes per inode: pods and images have many small files
	"-m", "1",
	// The journal cannot grow with the file system, so it gets the size
	// that a larger one would have.
	"-J", "size=32",
	"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
		"large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
}

// growTo is the size, in blocks, up to which the file system can grow online
// with the descriptors that it reserves: 1 TiB.
const growTo = 1 << 28

// writeData makes the data partition's file system. Everything is initialised
// now and nothing lazily at the first mount, when power may be cut.
func (s Spec) writeData(ctx context.Context, f *os.File, p partition.Partition, id identity) error {
	dir, err := os.MkdirTemp("", "cairn-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "data.img")
	image, err := os.Create(path)
	if err != nil {
		return err
	}
	err = image.Truncate(p.Size)
	if closeErr := image.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	extended := fmt.Sprintf("lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,hash_seed=%s,resize=%d", id.uuid("hash"), growTo)
	args := append([]string{"-U", id.uuid("data"), "-E", extended}, dataOptions...)
	cmd := debian.Command(ctx, s.Tools, "usr/sbin/mke2fs", append(args, path)...)
	cmd.Env = append(cmd.Env, "MKE2FS_CONFIG=/dev/null", fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", s.Epoch.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(out))
	}
	return copyInto(f, p, path)
}
