package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Command prepares a program of an unpacked tree, such as "usr/bin/mkfs.erofs",
// to run on the build machine with the tree's own dynamic linker and libraries,
// so that what it writes does not depend on the machine. The tree must be of
// the machine's architecture. Programs that start others of the tree, and
// scripts, do not work this way.
func Command(ctx context.Context, tree, program string, args ...string) *exec.Cmd {
	loader, libraries, err := dynamicLinker(tree)
	if err != nil {
		cmd := exec.CommandContext(ctx, filepath.Join(tree, program), args...)
		cmd.Err = fmt.Errorf("run %s of %s: %w", program, tree, err)
		return cmd
	}
	path := filepath.Join(tree, program)
	base := []string{"--inhibit-cache", "--library-path", strings.Join(libraries, ":"), "--argv0", path, path}
	cmd := exec.CommandContext(ctx, loader, append(base, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LD_LIBRARY_PATH=")
	return cmd
}

// dynamicLinker finds a tree's loader and its library directories.
func dynamicLinker(tree string) (loader string, libraries []string, err error) {
	for _, pattern := range []string{"usr/lib/*-linux-*/ld-linux*.so.*", "usr/lib64/ld-linux*.so.*", "usr/lib/ld-linux*.so.*"} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return "", nil, err
		}
		if len(found) > 0 {
			loader = found[0]
			break
		}
	}
	if loader == "" {
		return "", nil, fmt.Errorf("no dynamic linker: libc6 is missing")
	}
	triplets, err := filepath.Glob(filepath.Join(tree, "usr/lib/*-linux-*"))
	if err != nil {
		return "", nil, err
	}
	return loader, append(triplets, filepath.Join(tree, "usr/lib")), nil
}

// MachineArch is the build machine's architecture as Debian names it.
func MachineArch() (string, error) {
	switch runtime.GOARCH {
	case "amd64", "arm64":
		return runtime.GOARCH, nil
	case "arm":
		return "armhf", nil
	}
	return "", fmt.Errorf("architecture %s: this machine can run no programs of Debian's amd64, arm64 or armhf", runtime.GOARCH)
}
