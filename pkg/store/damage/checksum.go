package damage

import "math/bits"

// polynomial is that of dqlite's CRC-32, which goes from the highest bit to
// the lowest, starts at 0 and is not inverted (src/raft/byte.c): not the one
// of hash/crc32.
const polynomial = 0x04c11db7

// crcTables hold the checksum of each byte followed by 0 to 7 zero bytes.
var crcTables = makeCRCTables()

func makeCRCTables() (t [8][256]uint32) {
	for i := range t[0] {
		c := uint32(i) << 24
		for range 8 {
			if c&(1<<31) != 0 {
				c = c<<1 ^ polynomial
			} else {
				c <<= 1
			}
		}
		t[0][i] = c
	}
	for k := 1; k < len(t); k++ {
		for i := range t[k] {
			c := t[k-1][i]
			t[k][i] = c<<8 ^ t[0][c>>24]
		}
	}
	return t
}

func checksum(data []byte) uint32 {
	var c uint32
	t := &crcTables
	for len(data) >= 8 {
		c ^= uint32(data[0])<<24 | uint32(data[1])<<16 | uint32(data[2])<<8 | uint32(data[3])
		c = t[7][c>>24] ^ t[6][c>>16&0xff] ^ t[5][c>>8&0xff] ^ t[4][c&0xff] ^
			t[3][data[4]] ^ t[2][data[5]] ^ t[1][data[6]] ^ t[0][data[7]]
		data = data[8:]
	}
	for _, b := range data {
		c = c<<8 ^ t[0][byte(c>>24)^b]
	}
	return c
}

// maxExplained bounds the search for a flipped bit: in more data, some bit
// would explain the checksum of an unfinished write too often by chance
// (bits / 2^32).
const maxExplained = 1 << 20

// oneBit reports whether one flipped bit, in data of the given length or in
// the checksum itself, explains a difference between stored and computed
// checksum. An unfinished write does not look like that, and a flipped bit
// does nothing else: it tells the two apart.
func oneBit(difference uint32, length int) bool {
	if bits.OnesCount32(difference) == 1 {
		return true
	}
	if length > maxExplained {
		return false
	}
	var s [8]uint32 // What the flip of each bit of a byte adds, the last byte first.
	for i := range s {
		s[i] = crcTables[0][1<<i]
	}
	for range length {
		for i := range s {
			if s[i] == difference {
				return true
			}
			s[i] = s[i]<<8 ^ crcTables[0][s[i]>>24]
		}
	}
	return false
}
