// Package crashlog reads what the kernel kept of its own crash: the records of pstore, in memory that a warm reboot
// spares (ramoops) or in the variables of UEFI firmware.
//
// References: Documentation/admin-guide/ramoops.rst and Documentation/admin-guide/abi-obsolete, fs/pstore of Linux 6.12.
// A record is a file in /sys/fs/pstore; removing it frees its place. Names are
//
//	dmesg-ramoops-<n>         the end of the kernel log at a panic or an oops: "Panic#2 Part1", then the lines
//	dmesg-efi_pstore-<id>     the same in parts of 1 KiB, the last part first; id is (time*100+part)*1000+count
//	console-ramoops-0         the end of the console of the last boot, however that ended
//
// The texts of a crash come from a machine in trouble: they are bounded, and may be cut or garbled.
package crashlog

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Pstore is where the kernel shows its records.
const Pstore = "/sys/fs/pstore"

// Kind is what a record tells of.
type Kind string

// The kinds. Other reasons for which a kernel dumps its log (Emergency, Shutdown) do not come up here.
const (
	Panic   Kind = "panic"   // the kernel gave up, and restarted the machine
	Oops    Kind = "oops"    // a fault in the kernel; its panic has a record of its own
	Console Kind = "console" // what was last on the console; after a hang it is all there is
)

const (
	maxRecords = 64       // that are looked at
	maxRecord  = 64 << 10 // bytes of one file
	maxText    = 32 << 10 // bytes of a whole record, the newest
	maxLine    = 200      // bytes of Line
	tailLines  = 20
)

// Record is one crash, or one console.
type Record struct {
	Kind Kind
	// Line is the one that says it: what followed "Kernel panic - not syncing:", or what comes next to it; of a console
	// without one, the last line.
	Line string
	// Text is all of it, without levels, one line each with its time in seconds since that boot.
	Text string
	// Files are its names in pstore.
	Files []string
	// Path is where Move put it, or "".
	Path string
}

// Tail returns the last lines.
func (r Record) Tail() []string {
	lines := strings.Split(strings.TrimRight(r.Text, "\n"), "\n")
	return lines[max(0, len(lines)-tailLines):]
}

// fileName takes a record's name apart; compressed records (.enc.z) that the kernel could not unpack are no text.
var fileName = regexp.MustCompile(`^(dmesg|console)-([a-z_]+)-([0-9]{1,19})$`)

// header is the first line of a dump.
var header = regexp.MustCompile(`^(Panic|Oops)#([0-9]{1,9}) Part([0-9]{1,9})$`)

// part is one file.
type part struct {
	name   string
	kind   Kind
	crash  string // the same for the parts of one crash
	time   uint64 // of the write in seconds, or the place in the memory
	number int    // 1 is the end of the text
	text   string
}

// apart is how many seconds may lie between the parts of one crash: firmware is slow, and each part has its own time.
const apart = 60

// Read returns the records in dir, oldest crash first as far as their names tell; consoles come last. What cannot be
// read is left out and named in the error, which comes with the rest. A dir that is not there holds nothing.
func Read(dir string) ([]Record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read crash records: %w", err)
	}
	var parts []part
	var errs []error
	for _, e := range entries[:min(len(entries), maxRecords)] {
		match := fileName.FindStringSubmatch(e.Name())
		if match == nil {
			continue
		}
		text, err := readEnd(filepath.Join(dir, e.Name()), maxRecord)
		if err != nil {
			errs = append(errs, fmt.Errorf("read crash record: %w", err))
			continue
		}
		parts = append(parts, parse(match, text))
	}
	return join(parts), errors.Join(errs...)
}

// readEnd returns the last bytes of a file, at most limit.
func readEnd(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return "", err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	return string(data), err
}

// parse makes a part of a file; match is what fileName found.
func parse(match []string, text string) part {
	p := part{name: match[0], kind: Console, crash: match[0], number: 1, text: text}
	if match[1] == "console" {
		return p
	}
	id, err := strconv.ParseUint(match[3], 10, 64)
	if err != nil { // 19 digits are no reason to lose the text
		id = 0
	}
	p.time = id
	first, rest, _ := strings.Cut(text, "\n")
	head := header.FindStringSubmatch(first)
	if head == nil { // garbled: what is left of it may still say something
		p.kind = Oops
		if strings.Contains(text, signs[0]) {
			p.kind = Panic
		}
		return p
	}
	p.kind, p.text = Kind(strings.ToLower(head[1])), rest
	if p.number, err = strconv.Atoi(head[3]); err != nil {
		p.number = 1
	}
	if match[2] != "ramoops" { // which keeps one part only
		p.crash, p.time = match[2]+" "+head[1]+"#"+head[2], id/100_000
	}
	return p
}

// join puts the parts of each crash together.
func join(parts []part) []Record {
	slices.SortStableFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(rank(a.kind), rank(b.kind)), cmp.Compare(a.time, b.time), cmp.Compare(a.name, b.name))
	})
	var crashes [][]part
	for _, p := range parts {
		i := slices.IndexFunc(crashes, func(have []part) bool {
			return have[0].crash == p.crash && p.time-have[0].time <= apart &&
				!slices.ContainsFunc(have, func(q part) bool { return q.number == p.number })
		})
		if i < 0 {
			crashes = append(crashes, nil)
			i = len(crashes) - 1
		}
		crashes[i] = append(crashes[i], p)
	}
	all := make([]Record, 0, len(crashes))
	for _, c := range crashes {
		all = append(all, record(c))
	}
	return all
}

// record is the crash of which the parts are.
func record(parts []part) Record {
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(b.number, a.number) })
	r := Record{Kind: parts[0].kind}
	for _, p := range parts {
		r.Files = append(r.Files, p.name)
		r.Text += clean(p.text)
	}
	if over := len(r.Text) - maxText; over > 0 {
		_, r.Text, _ = strings.Cut(r.Text[over:], "\n")
	}
	r.Line = line(r.Text)
	return r
}

func rank(k Kind) int {
	if k == Console {
		return 1
	}
	return 0
}
