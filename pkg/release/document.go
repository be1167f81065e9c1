package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// The documents of a release, Manifest and Channel, are read by machines that
// are older than who wrote them: a shop that was closed for a year must still
// find its way to the newest release. So unknown fields are passed over, and a
// newer release may add what an older machine need not know. What an older
// machine must not pass over is said by values it refuses: another image, or
// From. Everything else is strict, because a document is signed by a machine
// and not typed by hand: exactly one JSON object, no key twice (also not in
// other case, which encoding/json takes for the same field), no data behind it,
// no text that is not UTF-8, every field there and within its bounds.

// maxDepth bounds the nesting that decode follows.
const maxDepth = 16

// decode reads the document data, of at most limit bytes, into v.
func decode(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("%d bytes: longer than %d", len(data), limit)
	}
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	t, err := d.Token()
	if err != nil {
		return notJSON(err)
	}
	if t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	if err := object(d, 1); err != nil {
		return notJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more data behind the JSON object")
	}
	return json.Unmarshal(data, v)
}

func notJSON(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("cut off before its end")
	}
	return err
}

// object reads the rest of an object and refuses a key that comes twice.
func object(d *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("key %v is not a string", t)
		}
		folded := strings.ToLower(key)
		if seen[folded] {
			return fmt.Errorf("key %q comes twice", key)
		}
		seen[folded] = true
		if err := value(d, depth); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// value reads one value.
func value(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if delim == '{' {
		return object(d, depth+1)
	}
	for d.More() {
		if err := value(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// encode returns the text of v that decode reads.
func encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// isHex says whether s is n bytes in lower-case hexadecimal.
func isHex(s string, n int) bool {
	return len(s) == 2*n && only(s, "0123456789abcdef")
}

// only says whether all characters of s are among allowed.
func only(s, allowed string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(allowed, r) })
}
