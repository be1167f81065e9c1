package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// Socket is where a node's store listens for its operator.
	Socket = "/run/cairn/store-admin.sock"
	// maxAnswer bounds the body of an answer.
	maxAnswer   = 4 << 20
	dialTimeout = 5 * time.Second
)

// Client asks one member. It may be used concurrently.
type Client struct {
	http *http.Client
}

// NewClient asks over connections of dial.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}}
}

// Open asks the member whose operator's socket is at path.
func Open(path string) *Client {
	return NewClient(func(ctx context.Context) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		return d.DialContext(ctx, "unix", path)
	})
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is an answer of a member that is not a success.
type Error struct {
	Problem
	Code int // HTTP status code
}

func (e *Error) Error() string { return e.Problem.Error }

// Do sends in, if any, as JSON and reads the answer into out, if any. Answers
// that are not a success come as *Error.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://store"+path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the store: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the store: %s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return answered(method, path, resp, data)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("answer to %s %s: %w", method, path, err)
	}
	return nil
}

// Leader returns who can answer, when err says that the one asked cannot.
func Leader(err error) (ID, bool) {
	var e *Error
	if errors.As(err, &e) && e.Problem.Leader != 0 {
		return e.Problem.Leader, true
	}
	return 0, false
}

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.Do(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Remove takes a member out of the cluster.
func (c *Client) Remove(ctx context.Context, id ID) error {
	return c.Do(ctx, http.MethodDelete, "/v1/members/"+id.String(), nil, nil)
}
