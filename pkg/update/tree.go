package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/containerd/go-dmverity/pkg/verity"
)

// verityBlock is the unit of the data and of the hash tree in bytes, and perBlock the number of digests in one.
const (
	verityBlock = 4096
	perBlock    = verityBlock / sha256.Size
)

// verityTree computes the dm-verity tree of a root image whose first data bytes are a file system and, as their last
// block, verity's superblock, which says what the salt is. The tree follows them, its top first (cryptsetup's on-disk
// format, hash type 1: https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity). The library can only write to a file
// of its own opening, so the tree, but not the superblock, is built here.
func verityTree(ctx context.Context, r io.ReaderAt, data int64) (tree []byte, rootHash string, err error) {
	if data < 2*verityBlock || data%verityBlock != 0 {
		return nil, "", fmt.Errorf("verity tree of %d bytes: no file system and superblock in whole blocks", data)
	}
	blocks := data/verityBlock - 1
	block := make([]byte, verityBlock)
	if _, err := r.ReadAt(block, blocks*verityBlock); err != nil {
		return nil, "", fmt.Errorf("verity superblock: %w", err)
	}
	sb, err := verity.DeserializeSuperblock(block)
	if err != nil {
		return nil, "", fmt.Errorf("verity superblock: %w", err)
	}
	algorithm := string(bytes.TrimRight(sb.Algorithm[:], "\x00"))
	if sb.HashType != 1 || algorithm != "sha256" || sb.DataBlockSize != verityBlock || sb.HashBlockSize != verityBlock ||
		int64(sb.DataBlocks) != blocks || int(sb.SaltSize) > len(sb.Salt) {
		return nil, "", fmt.Errorf("verity superblock: hash type %d, %q, %d blocks of %d and %d bytes; want 1, \"sha256\", %d of %d",
			sb.HashType, algorithm, sb.DataBlocks, sb.DataBlockSize, sb.HashBlockSize, blocks, verityBlock)
	}
	salt := sb.Salt[:sb.SaltSize]
	level, err := hashBlocks(ctx, io.NewSectionReader(r, 0, blocks*verityBlock), blocks, salt)
	if err != nil {
		return nil, "", err
	}
	for len(level) > sha256.Size {
		level = append(level, make([]byte, (verityBlock-len(level)%verityBlock)%verityBlock)...)
		tree = append(level, tree...)
		if level, err = hashBlocks(ctx, bytes.NewReader(level), int64(len(level)/verityBlock), salt); err != nil {
			return nil, "", err
		}
	}
	return tree, hex.EncodeToString(level), nil
}

// hashBlocks returns the digests of r's blocks, of which there are n, with room for zeros up to a whole block.
func hashBlocks(ctx context.Context, r io.Reader, n int64, salt []byte) ([]byte, error) {
	out := make([]byte, 0, (n+perBlock-1)/perBlock*verityBlock)
	h := sha256.New()
	buf := make([]byte, perBlock*verityBlock)
	for {
		got, err := io.ReadFull(r, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, fmt.Errorf("verity tree: %w", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for at := 0; at < got; at += verityBlock {
			h.Reset()
			h.Write(salt)
			h.Write(buf[at : at+verityBlock])
			out = h.Sum(out)
		}
		if err != nil {
			return out, nil
		}
	}
}
