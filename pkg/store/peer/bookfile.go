package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"unicode"
	"unicode/utf8"
)

const (
	bookVersion  = 1
	maxEntries   = 256
	maxAddresses = 16
	maxName      = 253     // of a DNS name
	maxBook      = 4 << 20 // bytes; more than maxEntries entries can be
	maxSequence  = 1 << 62 // leaves room to be outdone
)

// bookFile is the file's content. Unknown fields are left out without a word:
// after an update that was undone, the file is a newer release's.
type bookFile struct {
	Version int     `json:"version"`
	Members []Entry `json:"members"`
}

// wireEntry is an Entry in JSON. The ID is in the hexadecimal digits that logs
// and raft's addresses show; as a number, other tools would round it.
type wireEntry struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Sequence  uint64   `json:"sequence"`
	Witness   bool     `json:"witness,omitempty"`
	Zone      string   `json:"zone,omitempty"`
}

// MarshalJSON writes the entry for the file and for other members.
func (e Entry) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireEntry{fmt.Sprintf("%016x", e.ID), e.Name, e.Addresses, e.Sequence, e.Witness, e.Zone})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Entry) UnmarshalJSON(data []byte) error {
	var w wireEntry
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	id, err := strconv.ParseUint(w.ID, 16, 64)
	if err != nil || len(w.ID) != 16 {
		return fmt.Errorf("member ID %q: want 16 hexadecimal digits", w.ID)
	}
	*e = Entry{id, w.Name, w.Addresses, w.Sequence, w.Witness, w.Zone}
	return nil
}

// check says what is wrong with an entry.
func (e Entry) check() error {
	if e.ID == 0 {
		return fmt.Errorf("member %q: the ID is 0", e.Name)
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s (%q): %w", name(e.ID), e.Name, fmt.Errorf(format, args...))
	}
	if !plain(e.Name) || e.Name == "" {
		return fail("name: want 1 to %d printable characters", maxName)
	}
	if !plain(e.Zone) {
		return fail("zone %q: want at most %d printable characters", e.Zone, maxName)
	}
	if e.Sequence == 0 || e.Sequence > maxSequence {
		return fail("sequence number %d: want 1 to %d", e.Sequence, uint64(maxSequence))
	}
	if len(e.Addresses) == 0 || len(e.Addresses) > maxAddresses {
		return fail("%d addresses: want 1 to %d", len(e.Addresses), maxAddresses)
	}
	for _, a := range e.Addresses {
		if err := checkAddress(a); err != nil {
			return fail("address %q: %w", a, err)
		}
	}
	return nil
}

// checkAddress accepts a host:port to which others can connect.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("want host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("want a port from 1 to 65535")
	}
	if host == "" || !plain(host) {
		return errors.New("want a host")
	}
	if ip, err := netip.ParseAddr(host); err == nil && (ip.IsUnspecified() || ip.IsMulticast()) {
		return errors.New("is no machine's: advertise an address under which the others reach this one")
	}
	return nil
}

func plain(s string) bool {
	if len(s) > maxName || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

func formatBook(entries []Entry) ([]byte, error) {
	data, err := json.MarshalIndent(bookFile{bookVersion, entries}, "", "  ")
	return append(data, '\n'), err
}

// ReadBook reads an address book that no Network uses at the moment. The error
// wraps fs.ErrNotExist if there is none.
func ReadBook(path string) ([]Entry, error) { return readBook(path) }

func readBook(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBook+1))
	if err != nil {
		return nil, err
	}
	entries, err := parseBook(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return entries, nil
}

// parseBook reads what formatBook wrote.
func parseBook(data []byte) ([]Entry, error) {
	if len(data) > maxBook {
		return nil, fmt.Errorf("longer than %d bytes", maxBook)
	}
	var f bookFile
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("byte %d: %w", d.InputOffset(), err)
	}
	end := d.InputOffset()
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("byte %d: more than one document", end)
	}
	if f.Version != bookVersion {
		return nil, fmt.Errorf("version %d: want %d", f.Version, bookVersion)
	}
	if len(f.Members) > maxEntries {
		return nil, fmt.Errorf("%d members: want at most %d", len(f.Members), maxEntries)
	}
	seen := map[uint64]bool{}
	for i, e := range f.Members {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("member %d of %d: %w", i+1, len(f.Members), err)
		}
		if seen[e.ID] {
			return nil, fmt.Errorf("member %d of %d: %s is there twice", i+1, len(f.Members), name(e.ID))
		}
		seen[e.ID] = true
	}
	return f.Members, nil
}
