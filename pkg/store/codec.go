package store

import (
	"bytes"
	_ "embed" // for the dictionary
	"fmt"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How a value is stored: the first byte of the column tells. An empty column
// is an empty value.
const (
	codecRaw  = 0 // the value follows
	codecZstd = 1 // one zstd frame with dictionary 1 follows
)

const (
	// compressFrom is the size from which a value is worth an attempt: below,
	// the frame's own bytes eat what is won.
	compressFrom = 128
	// valueLimit bounds what a frame may unpack to: far more than a request
	// may hold, far less than harms.
	valueLimit = 16 << 20
)

// dictionary1 is text that objects of Kubernetes are full of; without it a
// single object of 1.5 kB hardly shrinks. It is part of every database and must
// never change: a better one is another codec.
//
//go:embed dictionary1.txt
var dictionary1 []byte

const dictionaryID = 1

// encryptedPrefix is what the apiserver writes before values that it encrypts
// (k8s.io/apiserver, storage/value/encrypt): they do not shrink.
var encryptedPrefix = []byte("k8s:enc:")

// codec turns values into what the column holds and back. What the raft log
// carries is whole pages, so each byte less in a row is a byte less in memory,
// in each snapshot and, page by page, in each write. It is safe for concurrent
// use.
type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

// newCodec returns a codec. The fastest level is within 3 % of the default's
// size on objects of Kubernetes, few of which are larger than the window. With
// the default window and two encoders 8 MiB more are held.
func newCodec() (*codec, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderDictRaw(dictionaryID, dictionary1))
	if err != nil {
		return nil, fmt.Errorf("zstd encoder: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(valueLimit), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderDictRaw(dictionaryID, dictionary1))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return &codec{encoder: encoder, decoder: decoder}, nil
}

// encode returns the column for a value, never nil: the column is NOT NULL.
func (c *codec) encode(value []byte) []byte {
	if len(value) == 0 {
		return []byte{}
	}
	if len(value) >= compressFrom && !bytes.HasPrefix(value, encryptedPrefix) {
		packed := c.encoder.EncodeAll(value, append(make([]byte, 0, len(value)), codecZstd))
		if len(packed) < len(value)-len(value)/16 {
			return bytes.Clone(packed) // It is kept for long, without the room for what was saved.
		}
	}
	return append(append(make([]byte, 0, len(value)+1), codecRaw), value...)
}

// decode returns the value of a column. It may share the column's memory.
func (c *codec) decode(column []byte) ([]byte, error) {
	if len(column) == 0 {
		return column, nil
	}
	switch column[0] {
	case codecRaw:
		return column[1:], nil
	case codecZstd:
		value, err := c.decoder.DecodeAll(column[1:], nil)
		if err != nil || len(value) == 0 {
			return nil, status.Errorf(codes.DataLoss, "store: unpack a value of %d bytes: %v", len(column)-1, err)
		}
		return value, nil
	default:
		return nil, status.Errorf(codes.DataLoss, "store: unpack a value: unknown codec %d: damaged, or written by a newer release", column[0])
	}
}
