package damage

import (
	"encoding/binary"
	"fmt"
)

// A segment is the format's number and then batches, each
//
//	u32 checksum of the header, u32 checksum of the data
//	header: u64 n, then n times: u64 term, u8 type, 3 unused bytes, u32 size
//	data of the n entries
//
// little endian, up to the end of a closed segment's file or, in an open one,
// up to zeros (src/raft/uv_segment.c, uv_encoding.c).
const (
	diskFormat  = 1
	formatSize  = 8
	sumsSize    = 8
	countSize   = 8
	entryHeader = 16
	segmentSize = 8 << 20
	// maxEntries is dqlite's bound for the entries of one batch.
	maxEntries = segmentSize / 32
	// sector is the smallest unit that a disk writes whole.
	sector = 512
	// barrierBatch is the size of a batch that holds one barrier.
	barrierBatch = sumsSize + countSize + entryHeader + 8
)

// Types of entries (enum in src/raft.h).
const (
	entryCommand = 1
	entryBarrier = 2
	entryChange  = 3
)

// batch is one batch of entries as it lies in a segment.
type batch struct {
	offset, end int
	entries     int
	runs        []run
	firstType   byte
	// decreasing means that the terms do not rise with the entries.
	decreasing bool
	// commands counts the entries that are no barriers.
	commands int
}

// run is entries of one term that follow each other.
type run struct{ entries, term uint64 }

// fault is why a batch cannot be read.
type fault struct {
	offset int
	text   string
	// cut: dqlite takes this for the end of an open segment. Otherwise it
	// refuses to start.
	cut bool
	// end is where the batch would end; 0: its header is not readable.
	end int
	// headerEnd is where the header would end, as far as is known.
	headerEnd int
}

// readBatch reads the batch at offset off as uvLoadEntriesBatch does.
func readBatch(buf []byte, off int) (batch, *fault) {
	rest := buf[off:]
	if len(rest) < sumsSize+countSize {
		return batch{}, &fault{offset: off, text: fmt.Sprintf("%d bytes remain where a batch needs at least %d", len(rest), sumsSize+countSize)}
	}
	sumHeader := binary.LittleEndian.Uint32(rest)
	sumData := binary.LittleEndian.Uint32(rest[4:])
	n := binary.LittleEndian.Uint64(rest[sumsSize:])
	if n == 0 || n > maxEntries {
		return batch{}, &fault{
			offset: off, text: fmt.Sprintf("a batch of %d entries", n), cut: true,
			headerEnd: off + sumsSize + countSize + entryHeader,
		}
	}
	size := countSize + int(n)*entryHeader
	if len(rest)-sumsSize < size {
		return batch{}, &fault{offset: off, text: fmt.Sprintf("a batch of %d entries does not fit in the file", n)}
	}
	header := rest[sumsSize:][:size]
	if sum := checksum(header); sum != sumHeader {
		return batch{}, &fault{
			offset: off, text: "the header of a batch does not match its checksum", cut: true,
			headerEnd: off + sumsSize + size,
		}
	}
	b := batch{offset: off, entries: int(n)}
	length, f := b.readHeader(header)
	if f != nil {
		return batch{}, f
	}
	start := sumsSize + size
	if len(rest)-start < length {
		return batch{}, &fault{offset: off, text: fmt.Sprintf("a batch has %d bytes of data, of which the file holds %d", length, len(rest)-start)}
	}
	b.end = off + start + length
	if sum := checksum(rest[start:][:length]); sum != sumData {
		return batch{}, &fault{
			offset: off, text: "the data of a batch do not match their checksum", cut: true,
			end: b.end, headerEnd: off + start,
		}
	}
	return b, nil
}

// readHeader takes from a header whose checksum is right what is of interest
// and returns the length of the batch's data.
func (b *batch) readHeader(header []byte) (int, *fault) {
	length := 0
	for i := range b.entries {
		h := header[countSize+i*entryHeader:]
		term := binary.LittleEndian.Uint64(h)
		kind := h[8]
		switch kind {
		case entryCommand, entryChange:
			b.commands++
		case entryBarrier:
		default:
			return 0, &fault{offset: b.offset, text: fmt.Sprintf("an entry of unknown type %d", kind)}
		}
		if i == 0 {
			b.firstType = kind
		}
		switch last := len(b.runs) - 1; {
		case i == 0:
			b.runs = []run{{1, term}}
		case b.runs[last].term == term:
			b.runs[last].entries++
		default:
			b.decreasing = b.decreasing || term < b.runs[last].term
			b.runs = append(b.runs, run{1, term})
		}
		length += int(binary.LittleEndian.Uint32(h[12:]))
	}
	return length, nil
}

// flipped reports whether one flipped bit explains the fault, which is one that
// dqlite takes for the end of the log.
func (f *fault) flipped(buf []byte) bool {
	rest := buf[f.offset:]
	sumHeader := binary.LittleEndian.Uint32(rest)
	if f.end != 0 { // The header is valid, the data are not.
		data := buf[f.headerEnd:f.end]
		return oneBit(checksum(data)^binary.LittleEndian.Uint32(rest[4:]), len(data))
	}
	n := binary.LittleEndian.Uint64(rest[sumsSize:])
	if header := buf[f.offset+sumsSize : min(f.headerEnd, len(buf))]; n > 0 && n <= maxEntries && oneBit(checksum(header)^sumHeader, len(header)) {
		return true
	}
	for i := range 64 {
		m := n ^ 1<<i
		if m == 0 || m > maxEntries {
			continue
		}
		size := countSize + int(m)*entryHeader
		if len(rest)-sumsSize < size {
			continue
		}
		header := append(binary.LittleEndian.AppendUint64(nil, m), rest[sumsSize+countSize:][:size-countSize]...)
		if checksum(header) == sumHeader {
			return true
		}
	}
	return false
}

const (
	// maxSearched bounds the batches that findBatches looks for, and
	// maxHashed the bytes it computes checksums of.
	maxSearched = 1024
	maxHashed   = 64 << 20
)

// findBatches returns what valid batches lie in buf from offset off on,
// whatever is between them.
func findBatches(buf []byte, off int) (found []batch) {
	hashed := 0
	for off = (off + 7) &^ 7; off+sumsSize+countSize+entryHeader <= len(buf) && hashed < maxHashed; {
		n := binary.LittleEndian.Uint64(buf[off+sumsSize:])
		kind := buf[off+sumsSize+countSize+8]
		if n == 0 || n > maxSearched || kind < entryCommand || kind > entryChange {
			off += 8
			continue
		}
		b, f := readBatch(buf, off)
		if f != nil {
			hashed += max(int(n)*entryHeader, f.end-off)
			off += 8
			continue
		}
		found = append(found, b)
		off = b.end
	}
	return found
}
