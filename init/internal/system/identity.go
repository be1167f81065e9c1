package system

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/provision"
	"golang.org/x/sys/unix"
)

const (
	hostnameFile = "var/lib/cairn/hostname"
	hostKey      = "/var/lib/cairn/ssh/dropbear_ed25519_host_key"
)

func (m *machine) setHostname(context.Context) error {
	name, err := hostname("/", m.config.Hostname)
	if err != nil {
		m.log.Print(err) // a name for this boot only is better than none
	}
	m.hostname = name
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname %s: %w", name, err)
	}
	return writeNames("/", name)
}

// hostname returns the configured name, or the one that was made up at the first boot and kept since. An error comes
// with a name all the same, which then could not be kept.
func hostname(root, configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	file := filepath.Join(root, hostnameFile)
	data, err := os.ReadFile(file)
	if name := strings.TrimSpace(string(data)); err == nil && name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "cairn", fmt.Errorf("read hostname: %w", err)
	}
	var random [3]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "cairn", fmt.Errorf("make a hostname: %w", err)
	}
	name := "cairn-" + hex.EncodeToString(random[:])
	if err := atomicfile.Write(file, []byte(name+"\n"), 0o644); err != nil {
		return name, fmt.Errorf("keep hostname: %w", err)
	}
	return name, nil
}

// writeNames writes /etc/hostname, and /etc/hosts with the root's own lines first.
func writeNames(root, name string) error {
	const mark = "127.0.1.1"
	file := filepath.Join(root, "etc/hosts")
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	if len(old) == 0 {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
	}
	for line := range strings.Lines(string(old)) {
		if !strings.HasPrefix(line, mark) {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	fmt.Fprintf(&b, "%s\t%s\n", mark, name)
	return errors.Join(
		os.WriteFile(filepath.Join(root, "etc/hostname"), []byte(name+"\n"), 0o644),
		os.WriteFile(file, []byte(b.String()), 0o644),
	)
}

// setUpSSH installs the owner's keys and, when there are any, makes the machine's own once.
func (m *machine) setUpSSH(ctx context.Context) error {
	if err := provision.SSHKeys("/", m.config.SSHAuthorizedKeys); err != nil {
		return err
	}
	if len(m.config.SSHAuthorizedKeys) == 0 {
		return nil
	}
	if info, err := os.Stat(hostKey); err == nil && info.Size() > 0 {
		return nil
	}
	// Under another name first: a power cut must not leave half a key in the place of the key.
	fresh := hostKey + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := m.run(ctx, "/usr/bin/dropbearkey", "-t", "ed25519", "-f", fresh); err != nil {
		return err
	}
	key, err := os.ReadFile(fresh)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(hostKey, key, 0o600); err != nil {
		return err
	}
	return os.Remove(fresh)
}
