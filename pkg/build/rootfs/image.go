package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/debian"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// BlockSize is the unit of the file system and of the hash tree, in bytes.
const BlockSize = 4096

// erofsOptions are those of mkfs.erofs that shape the file system. Measured on a
// tree of 230 MB (2026-11), image size, then the same inside a disk image
// compressed by zstd -3, and mkfs time: lz4hc,9 94.0 and 81.0 MB in 6 s;
// lz4hc,12 94.4 MB in 38 s; zstd,3 80.0 and 79.6 MB in 11 s; zstd,15 gave up
// after 140 s. What is downloaded hardly differs, and LZ4 reads fastest on small
// boards.
//
// An upgrade in which only Kubernetes' patch version changes, 1.36.3 to 1.36.4,
// may take 35 % of the full download (measured 2026-11; chunks of 64 KiB on
// average; deltas by zstd against 256 KiB of the old image; the deltas' sizes from
// a sample, and the first row's, with the boot image, came to 14 % in full):
//
//	                               full    upgrade without, with deltas  image   disk.img.zst
//	lz4hc,9 -C65536                109 MB  48 %  17 %                    125 MB  111 MB
//	the same, cairn-kube as it is  108 MB  35 %  11 %                    227 MB  103 MB
//	nothing compressed             102 MB  36 %  12 %                    299 MB   97 MB
//
// Addresses change every few bytes of a program that is linked anew, so hardly a
// chunk of it is reused. LZ4 keeps bytes as bytes, so deltas find them inside
// compressed data, too. That leaves no reason to read from a slow card, and to
// keep room for, two and a half times as much of the largest program.
var erofsOptions = []string{"-zlz4hc,9", "-C65536"}

// maxImage is how large an image may get, in bytes: three quarters of its
// partition of 1 GiB, because releases grow and partitions of machines in the
// field do not.
const maxImage = 768 << 20

const imageName = "root.img"

// imageFacts are kept beside an image.
type imageFacts struct {
	Blocks   int64  `json:"blocks"`
	RootHash string `json:"root_hash"`
	Size     int64  `json:"size"`
}

// addImage makes the image of r's tree, whose key is treeKey.
func (r *Root) addImage(ctx context.Context, o Options, tools, treeKey string) error {
	key := cache.NewKey("root-image-" + o.Target)
	key.String(treeKey, filepath.Base(tools))
	key.String(erofsOptions...)
	dir, err := o.Cache.Get(ctx, key, func(ctx context.Context, dir string) error {
		image := filepath.Join(dir, imageName)
		id := sha256.Sum256([]byte(key.Sum()))
		if err := makeErofs(ctx, tools, r.Tree, image, erofsID{o.Release.BuildTime, [16]byte(id[:16])}); err != nil {
			return err
		}
		facts, err := appendVerity(ctx, image)
		if err != nil {
			return err
		}
		if facts.Size > maxImage {
			return fmt.Errorf("the image has %d MiB; more than %d would leave no room in its partition of 1024 MiB", facts.Size>>20, maxImage>>20)
		}
		return writeJSON(filepath.Join(dir, manifestName), facts)
	})
	if err != nil {
		return err
	}
	var facts imageFacts
	if err := readJSON(filepath.Join(dir, manifestName), &facts); err != nil {
		return err
	}
	r.Image, r.Blocks, r.RootHash = filepath.Join(dir, imageName), facts.Blocks, facts.RootHash
	r.Manifest.ImageSize, r.Manifest.RootHash = facts.Size, facts.RootHash
	return nil
}

// erofsID is what mkfs.erofs would otherwise take from the clock and from
// chance.
type erofsID struct {
	time int64 // seconds since the epoch, of every file
	uuid [16]byte
}

func (id erofsID) args() []string {
	u := id.uuid
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // version 8, custom
	return []string{"-T", strconv.FormatInt(id.time, 10), "-U", fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])}
}

// makeErofs writes tree as a file system in which everything belongs to root.
func makeErofs(ctx context.Context, tools, tree, image string, id erofsID) (err error) {
	step := progress.FromContext(ctx).Start("root: make EROFS image")
	defer step.Done(&err)
	args := append([]string{"--quiet", "--all-root", "-x-1"}, erofsOptions...)
	args = append(append(args, id.args()...), image, tree)
	cmd := debian.Command(ctx, tools, "usr/bin/mkfs.erofs", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// appendVerity adds dm-verity's superblock and hash tree to an image. The salt
// is the digest of the image, so that no two releases share hash blocks and the
// same release always has the same.
func appendVerity(ctx context.Context, image string) (facts imageFacts, err error) {
	step := progress.FromContext(ctx).Start("root: add dm-verity tree")
	defer step.Done(&err)
	salt, size, err := padAndHash(image)
	if err != nil {
		return facts, err
	}
	params := verity.DefaultParams()
	params.DataBlockSize, params.HashBlockSize = BlockSize, BlockSize
	params.DataBlocks = uint64(size / BlockSize)
	params.Salt, params.SaltSize = salt, uint16(len(salt))
	params.UUID = [16]byte(salt[:16])
	params.HashAreaOffset = uint64(size)
	hash, err := verity.Create(&params, image, image)
	if err != nil {
		return facts, fmt.Errorf("hash tree of %s: %w", image, err)
	}
	info, err := os.Stat(image)
	if err != nil {
		return facts, err
	}
	return imageFacts{Blocks: size / BlockSize, RootHash: hex.EncodeToString(hash), Size: info.Size()}, nil
}

// padAndHash makes the image a whole number of blocks long and returns its
// SHA-256 and size.
func padAndHash(image string) (sum []byte, size int64, err error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size = (info.Size() + BlockSize - 1) / BlockSize * BlockSize
	if err := f.Truncate(size); err != nil {
		return nil, 0, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, 0, fmt.Errorf("hash %s: %w", image, err)
	}
	return h.Sum(nil), size, nil
}
