package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Entry is a mounted file system as the kernel lists it.
type Entry struct {
	ID, Parent int
	Device     string // major:minor
	Root       string // the path inside the file system that is mounted
	Target     string
	Options    string // per mount
	Type       string
	Source     string
	SuperOpts  string // per file system
}

// Table reads this process's mounts in the order in which they were made.
func Table() ([]Entry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	return ParseTable(f)
}

// ParseTable reads the format of proc_pid_mountinfo(5).
func ParseTable(r io.Reader) ([]Entry, error) {
	var all []Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay mounts of many layers make long lines
	for lines.Scan() {
		e, err := parseEntry(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("read mounts: %w", err)
		}
		all = append(all, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return all, nil
}

// parseEntry reads "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue".
func parseEntry(line string) (Entry, error) {
	head, tail, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(head), strings.Fields(tail)
	if !ok || len(left) < 6 || len(right) < 2 {
		return Entry{}, fmt.Errorf("malformed line %q", line)
	}
	id, err1 := strconv.Atoi(left[0])
	parent, err2 := strconv.Atoi(left[1])
	if err1 != nil || err2 != nil {
		return Entry{}, fmt.Errorf("malformed line %q", line)
	}
	e := Entry{
		ID: id, Parent: parent, Device: left[2],
		Root: unescape(left[3]), Target: unescape(left[4]), Options: left[5],
		Type: right[0], Source: unescape(right[1]),
	}
	if len(right) > 2 {
		e.SuperOpts = right[2]
	}
	return e, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
