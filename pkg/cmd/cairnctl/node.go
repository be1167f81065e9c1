package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/status"
)

// errUnreachable says that no node answers here.
var errUnreachable = errors.New("no Cairn node here")

const askTimeout = 20 * time.Second

// node is the machine that cairnctl runs on. Each request goes to cairnd, and to init when cairnd is down.
type node struct{ paths }

// down says that nobody listens on a socket, in which case asking the next one is right.
func down(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// explain adds to the error of the last resort what its reader can do.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (are you root?)", err)
	case down(err):
		return fmt.Errorf("%w: neither cairnd nor init answers; run cairnctl on the node itself, over ssh: %w", errUnreachable, err)
	}
	return err
}

func (n node) status(ctx context.Context) (status.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := adminapi.NewClient(n.daemon).Status(ctx)
	if down(err) {
		st, err = initctl.Client{Path: n.init}.Status(ctx)
	}
	return st, explain(err)
}

func (n node) do(ctx context.Context, req initctl.Request) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := adminapi.NewClient(n.daemon).Do(ctx, req)
	if down(err) {
		err = initctl.Client{Path: n.init}.Do(ctx, req)
	}
	if ends := req.Verb == initctl.VerbReboot || req.Verb == initctl.VerbPowerOff; ends && hungUp(err) {
		return nil // the machine goes down faster than it answers
	}
	return explain(err)
}

// hungUp says that who was asked took the request and went before it answered.
func hungUp(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) }

// logs reads the files itself when cairnd is down: its own log is wanted just then.
func (n node) logs(ctx context.Context, w io.Writer, process string, opt logfile.Options) error {
	err := adminapi.NewClient(n.daemon).Logs(ctx, w, process, opt)
	if !down(err) {
		return explain(err)
	}
	direct := logfile.Copy(ctx, w, n.paths.logs, process, opt)
	if errors.Is(direct, logfile.ErrUnknown) {
		if _, initErr := n.status(ctx); errors.Is(initErr, errUnreachable) {
			return initErr
		}
	}
	return direct
}
