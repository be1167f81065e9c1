package rootfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes a directory tree of what Audit has nothing to say about, and then
// lets change make it worse.
func tree(t *testing.T, change func(dir string) error) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"usr/bin", "usr/lib/x86_64-linux-gnu", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"bin": "usr/bin", "usr/bin/ash": "busybox", "usr/bin/sh": "/bin/ash", "etc/mtab": "../proc/self/mounts"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"usr/bin/busybox": "x", "usr/bin/script": "#!/bin/sh -e\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := change(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(name, text string, mode fs.FileMode) func(string) error {
	return func(dir string) error {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
		return os.Chmod(p, mode)
	}
}

func TestAudit(t *testing.T) {
	copyOf := func(program, name string) func(string) error {
		return func(dir string) error {
			data, err := os.ReadFile(program)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name), data, 0o755)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(string) error
		want   string // part of a problem; empty: there must be none
	}{
		{"clean", func(string) error { return nil }, ""},
		{"names that only look alike", put("usr/bin/asciicheck", "x", 0o755), ""},
		{"package manager", put("usr/bin/dpkg", "x", 0o755), "/usr/bin/dpkg: must not"},
		{"its kin", put("usr/bin/apt-get", "x", 0o755), "/usr/bin/apt-get: must not"},
		{"versioned interpreter", put("usr/bin/python3.13", "x", 0o755), "python3.13: must not"},
		{"script without interpreter", put("usr/bin/tool", "#!/usr/bin/perl -w\n", 0o755), "/usr/bin/tool: is a script"},
		{"set-user-ID", put("usr/bin/tool", "x", 0o755|fs.ModeSetuid), "set-ID"},
		{"world-writable", put("etc/hosts", "x", 0o666), "everyone may write"},
		{"broken link", func(dir string) error { return os.Symlink("nothing", filepath.Join(dir, "etc/x")) }, "/etc/x: links to nothing"},
		{"loop of links", func(dir string) error { return os.Symlink("x", filepath.Join(dir, "etc/x")) }, "/etc/x: links to x"},
		{"missing libraries", copyOf("/bin/ls", "usr/bin/ls"), "needs libc.so.6"},
		{"missing loader", copyOf("/bin/ls", "usr/bin/ls"), "needs the loader"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			problems := strings.Join(Audit(tree(t, tt.change)), "\n")
			if tt.want == "" && problems != "" {
				t.Errorf("Audit = %s; want nothing", problems)
			}
			if !strings.Contains(problems, tt.want) {
				t.Errorf("Audit = %q; want %q", problems, tt.want)
			}
		})
	}
}
