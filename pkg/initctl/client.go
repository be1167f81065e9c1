package initctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cairn-os/cairn/pkg/status"
)

// Client talks to the init that listens at Path. Every call is a connection of its own, so it survives nothing and
// needs no Close.
type Client struct {
	Path string
}

// RemoteError is what init answered.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return "init: " + e.Text }

// Status asks init for what it knows of the node.
func (c Client) Status(ctx context.Context) (status.Status, error) {
	res, err := c.call(ctx, Request{Verb: VerbStatus})
	if err != nil {
		return status.Status{}, err
	}
	if res.Status == nil {
		return status.Status{}, errors.New("init: answer without a status")
	}
	return *res.Status, nil
}

// Do sends a request that has no answer but success.
func (c Client) Do(ctx context.Context, req Request) error {
	_, err := c.call(ctx, req)
	return err
}

func (c Client) call(ctx context.Context, req Request) (response, error) {
	if err := req.check(); err != nil {
		return response{}, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Path)
	if err != nil {
		return response{}, fmt.Errorf("connect to init: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(2 * ioTimeout)); err != nil {
		return response{}, fmt.Errorf("connect to init: %w", err)
	}
	data, err := json.Marshal(req)
	if err != nil {
		return response{}, fmt.Errorf("encode request: %w", err)
	}
	if _, err := conn.Write(append(data, '\n')); err != nil {
		return response{}, fmt.Errorf("send %s to init: %w", req.Verb, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxResponse)).ReadBytes('\n')
	if err != nil {
		return response{}, fmt.Errorf("answer of init to %s: %w", req.Verb, err)
	}
	var res response
	if err := json.Unmarshal(line, &res); err != nil {
		return response{}, fmt.Errorf("answer of init to %s: %w", req.Verb, err)
	}
	if res.Error != "" {
		return response{}, &RemoteError{Text: res.Error}
	}
	return res, nil
}
