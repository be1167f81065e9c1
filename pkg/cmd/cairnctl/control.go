package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

// askControl calls f with a client of this server's control plane.
func (n node) askControl(ctx context.Context, f func(context.Context, *admin.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c := admin.Open(n.paths.control)
	defer c.Close()
	err := f(ctx, c)
	if !down(err) {
		return err
	}
	st, nodeErr := n.status(ctx)
	switch {
	case errors.Is(nodeErr, errUnreachable):
		return nodeErr
	case nodeErr == nil && st.Role != "" && st.Role != "server":
		return fmt.Errorf("this machine is no server but of the role %s: ask a server", st.Role)
	}
	return fmt.Errorf("the control plane does not answer: see 'cairnctl status' and 'cairnctl logs control' (%w)", err)
}
