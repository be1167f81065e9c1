package rootfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// forbidden are programs that must not be on a node: whoever breaks in finds
// neither a package manager nor an interpreter nor a compiler.
var forbidden = []string{"dpkg", "apt", "rpm", "perl", "python", "gcc", "cc", "ld", "as", "make", "su", "sudo"}

// Audit returns what is wrong with a root file system's tree, a line each:
// forbidden programs, scripts without their interpreter, programs without
// their libraries, links to nowhere, files with set-ID bits or that everyone
// may write.
func Audit(tree string) []string {
	a := auditor{tree: tree}
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, p)
		if err != nil {
			return err
		}
		return a.check(rel, d)
	})
	if err != nil {
		a.problems = append(a.problems, err.Error())
	}
	return a.problems
}

type auditor struct {
	tree     string
	problems []string
}

func (a *auditor) report(rel, format string, args ...any) {
	a.problems = append(a.problems, "/"+rel+": "+fmt.Sprintf(format, args...))
}

func (a *auditor) check(rel string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if slices.Contains([]string{"bin", "sbin"}, path.Base(path.Dir(rel))) && isForbidden(path.Base(rel)) {
		a.report(rel, "must not be on a node")
	}
	switch {
	case d.Type()&fs.ModeSymlink != 0:
		a.checkLink(rel)
		return nil
	case info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		a.report(rel, "has a set-ID bit")
	case info.Mode().Perm()&0o002 != 0:
		a.report(rel, "everyone may write it")
	case !d.IsDir() && !d.Type().IsRegular():
		a.report(rel, "is neither file, folder nor link")
	}
	library := strings.Contains(path.Base(rel), ".so") // Debian's are not executable
	if d.Type().IsRegular() && (library || info.Mode().Perm()&0o111 != 0) {
		return a.checkProgram(rel)
	}
	return nil
}

// isForbidden reports whether name is a forbidden program, or one of its
// family such as perl5.40 or apt-get.
func isForbidden(name string) bool {
	for _, f := range forbidden {
		rest, ok := strings.CutPrefix(name, f)
		if ok && strings.Trim(rest, "0123456789.") == "" {
			return true
		}
	}
	return strings.HasPrefix(name, "apt-") || strings.HasPrefix(name, "dpkg-")
}

// resolve follows the links of an absolute or relative path inside the tree.
// Pseudo file systems and the data partition are empty in it: what lies there
// counts as found.
func (a *auditor) resolve(dir, target string) bool {
	const maxLinks = 20
	name := target
	for range maxLinks {
		if !path.IsAbs(name) {
			name = path.Join("/", dir, name)
		}
		name = path.Clean(name)
		for _, mount := range []string{"/proc/", "/sys/", "/dev/", "/run/", "/var/"} {
			if strings.HasPrefix(name, mount) {
				return true
			}
		}
		next, err := a.step(name)
		if err != nil {
			return false
		}
		if next == "" {
			return true
		}
		dir, name = "", next
	}
	return false
}

// step replaces the first link on the way to name, an absolute path, by its
// target. It returns "" when there is none.
func (a *auditor) step(name string) (string, error) {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i := range parts {
		head := path.Join(parts[:i+1]...)
		info, err := os.Lstat(filepath.Join(a.tree, head))
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(a.tree, head))
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(head), target)
		}
		return path.Join(append([]string{target}, parts[i+1:]...)...), nil
	}
	return "", nil
}

func (a *auditor) checkLink(rel string) {
	target, err := os.Readlink(filepath.Join(a.tree, rel))
	if err != nil {
		a.report(rel, "%v", err)
		return
	}
	if !a.resolve(path.Dir(rel), target) {
		a.report(rel, "links to %s, which is not there", target)
	}
}

// checkProgram looks at what a file that may be executed needs to run.
func (a *auditor) checkProgram(rel string) error {
	file := filepath.Join(a.tree, rel)
	head, err := readHead(file)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(head, "#!"):
		line, _, _ := strings.Cut(head[2:], "\n")
		words := strings.Fields(line)
		if len(words) == 0 || !a.resolve("", words[0]) {
			a.report(rel, "is a script for %q, which is not there", line)
		}
	case strings.HasPrefix(head, elf.ELFMAG):
		return a.checkELF(rel, file)
	}
	return nil
}

func readHead(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 128)
	n, err := f.Read(head)
	if n == 0 && err != nil {
		return "", nil // empty
	}
	return string(head[:n]), nil
}

func (a *auditor) checkELF(rel, file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("/%s: %w", rel, err)
	}
	defer f.Close()
	if section := f.Section(".interp"); section != nil {
		data, err := section.Data()
		if err != nil {
			return fmt.Errorf("/%s: %w", rel, err)
		}
		if loader := strings.TrimRight(string(data), "\x00"); !a.resolve("", loader) {
			a.report(rel, "needs the loader %s, which is not there", loader)
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		if errors.Is(err, elf.ErrNoSymbols) {
			return nil
		}
		return fmt.Errorf("/%s: %w", rel, err)
	}
	dirs, err := filepath.Glob(filepath.Join(a.tree, "usr/lib/*-linux-*"))
	if err != nil {
		return err
	}
	dirs = append(dirs, filepath.Join(a.tree, "usr/lib"), filepath.Join(a.tree, "usr/lib64"))
	for _, library := range needed {
		if !slices.ContainsFunc(dirs, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, library))
			return err == nil
		}) {
			a.report(rel, "needs %s, which is not there", library)
		}
	}
	return nil
}
