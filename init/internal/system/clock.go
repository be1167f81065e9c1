package system

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-os/cairn/pkg/machine/stamp"
	"golang.org/x/sys/unix"
)

// floor is a time before which the clock cannot be right, and why.
type floor struct {
	at  time.Time
	why string // what was at that time
}

// certificateDirs hold what the machine was given, below /var/lib/cairn.
var certificateDirs = []string{"var/lib/cairn/server/tls", "var/lib/cairn/node/tls"}

// setClock moves the clock forward to the newest time that the data partition knows of: boards without a battery start
// in 1970, or when their release was built, where the certificates of their cluster are not valid yet. What is right is
// for NTP to say, later; the floor is what makes a machine work where no NTP answers.
func (m *machine) setClock(context.Context) error {
	floors, err := floors("/")
	return errors.Join(err, m.advanceClock(floors...))
}

// floors reads the time that cairnd kept, and when the newest certificate began to be valid.
func floors(root string) ([]floor, error) {
	var all []floor
	kept, err := stamp.Read(filepath.Join(root, stamp.Path))
	if err == nil {
		all = append(all, floor{kept, "this machine ran last"})
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, dir := range certificateDirs {
		files, globErr := filepath.Glob(filepath.Join(root, dir, "*"))
		err = errors.Join(err, globErr)
		for _, file := range files {
			if at, ok := issued(file); ok {
				all = append(all, floor{at, "its certificate " + file + " became valid"})
			}
		}
	}
	return all, err
}

// issued returns when the newest certificate in a PEM file began to be valid. What cannot be read tells nothing: others
// complain about it.
func issued(file string) (newest time.Time, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return newest, false
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err == nil && c.NotBefore.After(newest) {
			newest, ok = c.NotBefore, true
		}
	}
	return newest, ok
}

// advanceClock moves the clock forward to the newest floor, and never back. In a container the clock is the host's.
func (m *machine) advanceClock(floors ...floor) error {
	now := time.Now()
	to, behind := newest(now, floors)
	if m.opt.Container || !behind {
		return nil
	}
	m.log.Printf("the clock shows %s, before %s; it is set to %s", now.UTC().Format(time.DateOnly), to.why, to.at.UTC().Format(time.DateTime))
	tv := unix.NsecToTimeval(to.at.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// newest returns the latest floor, and whether now is before it.
func newest(now time.Time, floors []floor) (to floor, behind bool) {
	for _, f := range floors {
		if f.at.After(to.at) {
			to = f
		}
	}
	return to, now.Before(to.at)
}
