package config

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxContent bounds what a compressed write_files entry may grow to: the root's overlay is memory.
const maxContent = 16 << 20

// encodings are the spellings of k3OS with the steps they stand for.
var encodings = map[string]struct{ base64, gzip bool }{
	"":    {},
	"b64": {base64: true}, "base64": {base64: true},
	"gz": {gzip: true}, "gzip": {gzip: true},
	"gz+b64": {true, true}, "gz+base64": {true, true}, "gzip+b64": {true, true}, "gzip+base64": {true, true},
}

// Data returns what the file shall hold. Errors do not quote the content. A document cannot carry raw gzip, whose bytes
// are not text, so "gz" alone fails unless the content came from elsewhere.
func (f File) Data() ([]byte, error) {
	steps, ok := encodings[f.Encoding]
	if !ok {
		return nil, fmt.Errorf("unknown encoding %s", shown(f.Encoding))
	}
	data := []byte(f.Content)
	if steps.base64 {
		// Folded and literal YAML text brings its own line breaks.
		packed := strings.Join(strings.Fields(f.Content), "")
		var err error
		if data, err = base64.StdEncoding.DecodeString(packed); err != nil {
			return nil, errors.New("not base64, as encoding says")
		}
	}
	if !steps.gzip {
		return data, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, errors.New("not gzip, as encoding says")
	}
	data, err = io.ReadAll(io.LimitReader(z, maxContent+1))
	switch {
	case err != nil:
		return nil, errors.New("damaged gzip data")
	case len(data) > maxContent:
		return nil, fmt.Errorf("more than %d bytes when unpacked", maxContent)
	}
	return data, nil
}
