package chunk

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

const (
	// MaxDictionary is the longest range of an image that a delta may lean
	// on, in bytes: what a board of 512 MiB can spare.
	MaxDictionary = 4 << 20
	// MaxStored is the longest file of one chunk in a store, in bytes. What
	// cannot be compressed grows by a few bytes.
	MaxStored = MaxChunk + 4096
)

// ErrDelta says that a delta cannot be undone: it is damaged, or made against
// other bytes.
var ErrDelta = errors.New("damaged delta, or one against another image")

// Codec compresses and decompresses chunks. It holds memory of zstd's tables
// (about 1 MiB to decompress, about 50 MiB once it has compressed) and is not
// for concurrent use.
type Codec struct {
	enc *zstd.Encoder // made when first needed: a machine never compresses
	dec *zstd.Decoder
	buf []byte
}

// NewCodec returns a Codec, which its owner must close.
func NewCodec() (*Codec, error) {
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	return &Codec{dec: dec}, nil
}

// newDecoder bounds what a hostile frame can make a machine allocate.
func newDecoder(more ...zstd.DOption) (*zstd.Decoder, error) {
	o := append([]zstd.DOption{
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(MaxChunk), zstd.WithDecoderMaxWindow(2 * MaxChunk),
	}, more...)
	dec, err := zstd.NewReader(nil, o...)
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return dec, nil
}

// Close gives the memory back.
func (c *Codec) Close() error {
	c.dec.Close()
	if c.enc == nil {
		return nil
	}
	return c.enc.Close()
}

// Compress returns what a store keeps of data, a chunk.
func (c *Codec) Compress(data []byte) ([]byte, error) {
	if c.enc == nil {
		var err error
		if c.enc, err = newEncoder(); err != nil {
			return nil, err
		}
	}
	return compress(c.enc, data)
}

func newEncoder(more ...zstd.EOption) (*zstd.Encoder, error) {
	o := append([]zstd.EOption{
		zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), // the id is the check
	}, more...)
	enc, err := zstd.NewWriter(nil, o...)
	if err != nil {
		return nil, fmt.Errorf("zstd encoder: %w", err)
	}
	return enc, nil
}

func compress(enc *zstd.Encoder, data []byte) ([]byte, error) {
	if len(data) == 0 || len(data) > MaxChunk {
		return nil, fmt.Errorf("compress chunk: %d bytes; want 1 to %d", len(data), MaxChunk)
	}
	return enc.EncodeAll(data, nil), nil
}

// Decompress returns the chunk want from what a store keeps of it. What it
// returns is valid until the next call. Whatever does not come out as want wraps
// ErrMismatch.
func (c *Codec) Decompress(stored []byte, want Ref) ([]byte, error) {
	data, err := decode(c.dec, stored, c.buf, want)
	if cap(data) > cap(c.buf) {
		c.buf = data[:0]
	}
	return data, err
}

func decode(dec *zstd.Decoder, stored, buf []byte, want Ref) ([]byte, error) {
	if len(stored) > MaxStored || want.Size > MaxChunk {
		return nil, fmt.Errorf("chunk %s: %d bytes for %d: %w", want.ID, len(stored), want.Size, ErrMismatch)
	}
	data, err := dec.DecodeAll(stored, buf[:0])
	if err != nil {
		return nil, fmt.Errorf("chunk %s: %w: %w", want.ID, ErrMismatch, err)
	}
	return data, want.check(data)
}

// EncodeDelta returns what it takes to make data, a chunk, out of dictionary,
// the bytes of another image: one zstd frame with dictionary as its history.
func EncodeDelta(data, dictionary []byte) ([]byte, error) {
	if err := checkDictionary(len(dictionary)); err != nil {
		return nil, fmt.Errorf("encode delta: %w", err)
	}
	enc, err := newEncoder(zstd.WithEncoderDictRaw(0, dictionary), zstd.WithWindowSize(2*MaxDictionary), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, err
	}
	out, err := compress(enc, data)
	return out, errors.Join(err, enc.Close())
}

// DecodeDelta is the way back: it returns the chunk want. It allocates no more
// than MaxDictionary and MaxChunk bytes. Errors wrap ErrDelta.
func DecodeDelta(delta, dictionary []byte, want Ref) ([]byte, error) {
	if err := checkDictionary(len(dictionary)); err != nil {
		return nil, fmt.Errorf("decode delta of chunk %s: %w: %w", want.ID, ErrDelta, err)
	}
	dec, err := newDecoder(zstd.WithDecoderDictRaw(0, dictionary))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	data, err := decode(dec, delta, nil, want)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDelta, err)
	}
	return data, nil
}

func checkDictionary(n int) error {
	if n < minDictionary || n > MaxDictionary {
		return fmt.Errorf("dictionary of %d bytes; want %d to %d", n, minDictionary, MaxDictionary)
	}
	return nil
}

// minDictionary is the shortest history that zstd takes, in bytes.
const minDictionary = 8
