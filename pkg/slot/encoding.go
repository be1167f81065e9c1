package slot

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Size is the length of an encoded state in bytes: one sector, so that it
// cannot tear between sectors.
const Size = 512

const (
	signature = "# GRUB Environment Block\n"
	version   = "1"
)

// seal is legal for exactly the states that Check passes. The selector's
// configuration holds the same expression.
var seal = regexp.MustCompile(`^1:(0|[1-9][0-9]{0,8}):(a:none:0|b:none:0|a:b:[0-9]|b:a:[0-9])$`)

// ErrInvalid says that a state file holds no state that can be trusted.
var ErrInvalid = errors.New("invalid slot state")

func (s State) seal() string {
	return fmt.Sprintf("%s:%d:%s:%s:%d", version, s.Seq, s.Confirmed, s.Trial, s.Tries)
}

// Encode returns s as a GRUB environment block. The block ends in a newline
// and padding, without which GRUB cannot write to it.
func (s State) Encode() ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return EncodeBlock(Size,
		Variable{"cv", version}, Variable{"seq", strconv.Itoa(s.Seq)}, Variable{"confirmed", string(s.Confirmed)},
		Variable{"trial", string(s.Trial)}, Variable{"tries", strconv.Itoa(s.Tries)}, Variable{"seal", s.seal()})
}

// Decode reads a state as the selector does: the seal must be legal and repeat
// the other values. Its error is ErrInvalid.
func Decode(data []byte) (State, error) {
	vars, err := DecodeBlock(data)
	if err != nil {
		return State{}, err
	}
	text := vars["seal"]
	whole := strings.Join([]string{vars["cv"], vars["seq"], vars["confirmed"], vars["trial"], vars["tries"]}, ":")
	if text != whole || !seal.MatchString(text) {
		return State{}, fmt.Errorf("%w: seal %q on %q", ErrInvalid, text, whole)
	}
	seq, err1 := strconv.Atoi(vars["seq"])
	tries, err2 := strconv.Atoi(vars["tries"])
	if err := errors.Join(err1, err2); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := State{Seq: seq, Confirmed: Slot(vars["confirmed"]), Trial: Slot(vars["trial"]), Tries: tries}
	if err := s.Check(); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s, nil
}

// Choose returns the state that counts, of the two copies' contents, and the
// index (0 or 1) of the copy that holds it: the newer valid one, the first of
// equals. The next state belongs to the other copy. When neither is valid the
// error says why of both.
func Choose(first, second []byte) (State, int, error) {
	one, err1 := Decode(first)
	two, err2 := Decode(second)
	switch {
	case err1 != nil && err2 != nil:
		return State{}, 0, fmt.Errorf("first copy: %w; second copy: %w", err1, err2)
	case err1 != nil:
		return two, 1, nil
	case err2 != nil || two.Seq <= one.Seq:
		return one, 0, nil
	}
	return two, 1, nil
}

// Variable is one entry of a GRUB environment block.
type Variable struct{ Name, Value string }

// escapes are those of values.
var escapes = strings.NewReplacer(`\`, `\\`, "\n", "\\\n")

// EncodeBlock writes a GRUB environment block of size bytes.
func EncodeBlock(size int, vars ...Variable) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(signature)
	for _, v := range vars {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\n#\\") {
			return nil, fmt.Errorf("grub environment: variable name %q", v.Name)
		}
		b.WriteString(v.Name + "=" + escapes.Replace(v.Value) + "\n")
	}
	if b.Len() > size {
		return nil, fmt.Errorf("grub environment: %d bytes do not fit in %d", b.Len(), size)
	}
	b.Write(bytes.Repeat([]byte{'#'}, size-b.Len()))
	return b.Bytes(), nil
}

// DecodeBlock reads a GRUB environment block by the rules of GRUB 2.12
// (grub-core/lib/envblk.c), damaged ones too, so that what it calls a variable
// is what the selector calls one: a line that starts with # is skipped; a name
// is all up to the next =, across lines; a backslash in a value takes the next
// byte as it is; a value without its newline ends the block; the last of equal
// names counts; names and values end at a zero byte.
func DecodeBlock(data []byte) (map[string]string, error) {
	if len(data) <= len(signature) || !bytes.HasPrefix(data, []byte(signature)) {
		return nil, fmt.Errorf("%w: no GRUB environment block", ErrInvalid)
	}
	vars := map[string]string{}
	for rest := data[len(signature):]; len(rest) > 0; {
		if rest[0] == '#' {
			_, rest, _ = cutLine(rest)
			continue
		}
		name, after, ok := bytes.Cut(rest, []byte("="))
		if !ok {
			break
		}
		value, next, whole := cutLine(after)
		if !whole {
			break
		}
		vars[untilZero(name)] = untilZero(value)
		rest = next
	}
	return vars, nil
}

// cutLine takes all up to the next newline that is not escaped, and resolves
// its escapes.
func cutLine(data []byte) (line, rest []byte, whole bool) {
	end := bytes.IndexAny(data, "\n\\")
	if end < 0 {
		return data, nil, false
	}
	if data[end] == '\n' { // as nearly always
		return data[:end], data[end+1:], true
	}
	line = bytes.Clone(data[:end])
	for i := end; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\n':
			return line, data[i+1:], true
		case c == '\\':
			if i++; i < len(data) {
				line = append(line, data[i])
			}
		default:
			line = append(line, c)
		}
	}
	return line, nil, false
}

func untilZero(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
