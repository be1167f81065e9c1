package crashlog

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	// level is what the kernel log has before each line: "<4>".
	level = regexp.MustCompile(`^<[0-9]{1,3}>`)
	// stamp is the time, with or without the thread or processor that spoke: "[   12.345678][    T1] ".
	stamp = regexp.MustCompile(`^(\[ *[0-9]+\.[0-9]+\](\[ *[TC][0-9]+\])? ?)+`)
	// notice is what ramoops puts below a record that has checksums.
	notice = regexp.MustCompile(`^ECC: (No errors detected|[0-9]+ Corrected bytes, [0-9]+ unrecoverable blocks)$`)
)

// clean makes printable lines of a part's text, each with an end.
func clean(text string) string {
	var b strings.Builder
	for l := range strings.SplitSeq(text, "\n") {
		l = strings.TrimRightFunc(strings.Map(printable, level.ReplaceAllString(l, "")), unicode.IsSpace)
		if l == "" || notice.MatchString(l) {
			continue
		}
		b.WriteString(l + "\n")
	}
	return b.String()
}

// printable replaces what memory without power may have become.
func printable(r rune) rune {
	switch {
	case r == '\t':
		return ' '
	case r == '\r':
		return -1
	case r == utf8.RuneError || !unicode.IsPrint(r):
		return '?'
	}
	return r
}

// signs are the beginnings of the lines that tell of a crash, the one that tells the most first.
var signs = []string{"Kernel panic - not syncing: ", "kernel BUG at ", "BUG: ", "Oops: ", "watchdog: ", "INFO: task ", "general protection fault"}

// line finds the line that says what happened. Of several with the same sign the last is the one that ended the boot.
func line(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for _, sign := range signs {
		for i := len(lines) - 1; i >= 0; i-- {
			if at := strings.Index(lines[i], sign); at >= 0 && !strings.Contains(lines[i], "end Kernel panic") {
				return short(strings.TrimPrefix(lines[i][at:], signs[0]))
			}
		}
	}
	return short(stamp.ReplaceAllString(lines[len(lines)-1], ""))
}

func short(s string) string {
	if len(s) <= maxLine {
		return s
	}
	return strings.ToValidUTF8(s[:maxLine], "") + "…"
}

// endings are the kernel's last words of a boot that ended in order.
var endings = []string{"reboot: Restarting system", "reboot: Power down", "reboot: System halted", "reboot: Restarting with command"}

// InOrder reports whether the text is of a boot that was ended in order, and so tells of no crash. A panic that restarts
// the machine says "Rebooting in 10 seconds.." in place of these words.
func (r Record) InOrder() bool {
	if r.Kind != Console {
		return false
	}
	for _, l := range r.Tail() {
		for _, ending := range endings {
			if strings.Contains(l, ending) {
				return true
			}
		}
	}
	return false
}
