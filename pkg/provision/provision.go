// Package provision gives a root file system what its owner's configuration asks for: files, SSH keys, environment and
// commands. Every step may run any number of times and leaves the same result.
package provision

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/config"
)

// WriteFiles writes files below root in their order and makes missing directories (0755). Owners are looked up in
// root's own passwd and group. A file that cannot be written does not keep the others from being written; the error
// names each one that failed.
func WriteFiles(root string, files []config.File) error {
	var errs []error
	for _, f := range files {
		if err := writeFile(root, f); err != nil {
			errs = append(errs, fmt.Errorf("write_files %s: %w", f.Path, err))
		}
	}
	return errors.Join(errs...)
}

func writeFile(root string, f config.File) error {
	data, err := f.Data()
	if err != nil {
		return err
	}
	perm, err := mode(f.Permissions)
	if err != nil {
		return err
	}
	uid, gid, err := owner(root, f.Owner)
	if err != nil {
		return err
	}
	path := filepath.Join(root, f.Path)
	if err := makeParents(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteOptions(path, data, atomicfile.Options{Perm: perm, Chown: true, UID: uid, GID: gid})
}

// mode turns octal digits, as chmod(1) takes them, into Go's mode.
func mode(text string) (fs.FileMode, error) {
	if text == "" {
		return 0o644, nil
	}
	n, err := strconv.ParseUint(text, 8, 12)
	if err != nil {
		return 0, fmt.Errorf("permissions %q: want octal digits", text)
	}
	m := fs.FileMode(n) & fs.ModePerm
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			m |= flag
		}
	}
	return m, nil
}

// owner turns user[:group] into numbers. Without a group it is the user's own, 0 when the user has no entry.
func owner(root, text string) (uid, gid int, err error) {
	user, group, hasGroup := strings.Cut(text, ":")
	if user == "" {
		user = "0"
	}
	entry, found, err := lookup(filepath.Join(root, "etc/passwd"), user, 4)
	if err != nil {
		return 0, 0, err
	}
	switch n, err := strconv.Atoi(user); {
	case found:
		uid, gid = entry[0], entry[1]
	case err == nil:
		uid = n
	default:
		return 0, 0, fmt.Errorf("owner: no user %s", user)
	}
	if !hasGroup {
		return uid, gid, nil
	}
	entry, found, err = lookup(filepath.Join(root, "etc/group"), group, 3)
	if err != nil {
		return 0, 0, err
	}
	switch n, err := strconv.Atoi(group); {
	case found:
		gid = entry[0]
	case err == nil:
		gid = n
	default:
		return 0, 0, fmt.Errorf("owner: no group %s", group)
	}
	return uid, gid, nil
}

// lookup finds the line of a passwd(5) or group(5) file whose name or number is key and returns its numbers from the
// third column up to column count. A missing file has no lines.
func lookup(path, key string, count int) ([]int, bool, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	for line := range strings.Lines(string(data)) {
		columns := strings.Split(strings.TrimSpace(line), ":")
		if len(columns) < count || columns[0] != key && columns[2] != key {
			continue
		}
		var numbers []int
		for _, c := range columns[2:count] {
			n, err := strconv.Atoi(c)
			if err != nil {
				return nil, false, fmt.Errorf("%s: entry of %s: %w", path, columns[0], err)
			}
			numbers = append(numbers, n)
		}
		return numbers, true, nil
	}
	return nil, false, nil
}

// makeParents makes dir and what is missing above it, durably.
func makeParents(dir string, perm fs.FileMode) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	above := filepath.Dir(dir)
	if err := makeParents(above, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(dir, perm); err != nil { // whatever the umask
		return err
	}
	return atomicfile.SyncDir(above)
}

// SSHKeys makes keys the ones that log in as root, and no others. Without keys the file goes away.
func SSHKeys(root string, keys []string) error {
	dir := filepath.Join(root, "root/.ssh")
	path := filepath.Join(dir, "authorized_keys")
	if len(keys) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("ssh_authorized_keys: %w", err)
		}
		return nil
	}
	if err := makeParents(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("ssh_authorized_keys: %w", err)
	}
	if err := makeParents(dir, 0o700); err != nil {
		return fmt.Errorf("ssh_authorized_keys: %w", err)
	}
	var text strings.Builder
	for _, k := range keys {
		text.WriteString(strings.TrimSpace(k) + "\n")
	}
	// The SSH server ignores keys that others could write.
	err := atomicfile.WriteOptions(path, []byte(text.String()), atomicfile.Options{Perm: 0o600, Chown: os.Getuid() == 0})
	if err != nil {
		return fmt.Errorf("ssh_authorized_keys: %w", err)
	}
	return nil
}

// Environment sets variables in root's /etc/environment, quoted as a shell reads them, and keeps the others there.
func Environment(root string, variables map[string]string) error {
	if len(variables) == 0 {
		return nil
	}
	path := filepath.Join(root, "etc/environment")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("environment: %w", err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(old)) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if _, ours := variables[key]; !ours {
			text.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, key := range sortedKeys(variables) {
		text.WriteString(key + "=" + quote(variables[key]) + "\n")
	}
	if err := makeParents(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	if err := atomicfile.Write(path, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// quote puts value in double quotes for a shell.
func quote(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(value) + `"`
}

// RunCommands gives each command to sh -c by means of run, and stops at the first that fails. The error tells which
// one by its place in run_cmd, for the command itself may hold secrets.
func RunCommands(ctx context.Context, run func(ctx context.Context, argv []string) error, commands []string) error {
	for i, c := range commands {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("run_cmd[%d]: %w", i, err)
		}
		if err := run(ctx, []string{"/bin/sh", "-c", c}); err != nil {
			return fmt.Errorf("run_cmd[%d]: %w", i, err)
		}
	}
	return nil
}
