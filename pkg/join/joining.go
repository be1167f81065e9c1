package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// joiningFile is there from before the first file of a cluster that the machine is to join until its membership is
// written. It holds the configured server. Without it a machine whose cairn.server_url was removed after a power cut would
// begin a cluster of its own with the authorities of another.
func (o Options) joiningFile() string { return o.path("node", "joining") }

// joining returns by which server the machine was joining when it was cut off, "" when it was not.
func (o Options) joining() (server string, err error) {
	data, err := os.ReadFile(o.joiningFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read what this machine was joining: %w", err)
	}
	if server = logged(strings.TrimSpace(string(data))); server == "" {
		server = "another server" // that the file is there is what counts
	}
	return server, nil
}

// endJoining is for a machine that has a membership, which says all that counts. It looks first: on a file system that
// became read-only even the removal of what is not there fails, and such a machine has to come up all the same.
func (o Options) endJoining() error {
	if _, err := os.Stat(o.joiningFile()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Remove(o.joiningFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end joining: %w", err)
	}
	return nil
}

// enter is join for a machine that belongs to no cluster yet: its first file of the cluster is preceded by joiningFile. A
// try that gets no files leaves none, and the machine can still begin a cluster.
func (o Options) enter(ctx context.Context, stretch *stretcher) error {
	write, begun := o.write, false
	o.write = func(path string, data []byte, mode fs.FileMode) error {
		if path == IdentityFile(o.Dir) { // the machine's own, whatever becomes of it
			return write(path, data, mode)
		}
		if !begun {
			if err := write(o.joiningFile(), []byte(o.ServerURL+"\n"), 0o600); err != nil {
				return fmt.Errorf("note what this machine joins: %w", err)
			}
			begun = true
		}
		return write(path, data, mode)
	}
	return o.join(ctx, stretch)
}
