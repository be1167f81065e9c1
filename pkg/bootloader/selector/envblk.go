package selector

import (
	"bytes"

	"github.com/cairn-os/cairn/pkg/slot"
)

// signature begins a GRUB environment block.
const signature = "# GRUB Environment Block\n"

// setVariable sets a variable of an environment block in place, as GRUB 2.12
// does (grub-core/lib/envblk.c): the first of equal names, although the last
// one counts; into the padding when there is none. Values have nothing that
// must be escaped. It returns false, and the block may then be half-changed,
// when the block has no place or does not end in a newline and padding.
func setVariable(block []byte, v slot.Variable) bool {
	end := len(block)
	space := end
	for space > 0 && block[space-1] == '#' {
		space--
	}
	if space == 0 || block[space-1] != '\n' {
		return false
	}
	name := []byte(v.Name + "=")
	for p := len(signature); p+len(name) < space; p = nextLine(block, p) {
		if bytes.HasPrefix(block[p:], name) {
			return replaceValue(block, p+len(name), space, v.Value)
		}
	}
	if end-space < len(name)+len(v.Value)+1 {
		return false
	}
	copy(block[space:], v.Name+"="+v.Value+"\n")
	return true
}

// replaceValue replaces the value that begins at start; space is where the
// padding begins.
func replaceValue(block []byte, start, space int, value string) bool {
	end := len(block)
	length := nextLine(block, start) - 1 - start
	if start+length >= end || end-space < len(value)-length {
		return false
	}
	// What does not fit at the end is padding.
	tail := bytes.Clone(block[start+length:])
	if shorter := length - len(value); shorter > 0 {
		tail = append(tail, bytes.Repeat([]byte{'#'}, shorter)...)
	}
	n := copy(block[start:], value)
	copy(block[start+n:], tail)
	return true
}

// nextLine returns where the line after the one at p begins; an escaped newline
// does not end a line.
func nextLine(block []byte, p int) int {
	for p < len(block) && block[p] != '\n' {
		if block[p] == '\\' {
			p++
		}
		p++
	}
	return p + 1
}
