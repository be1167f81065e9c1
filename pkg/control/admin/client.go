package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// Socket is where a server's control plane listens for its operator.
	Socket = "/run/cairn/control.sock"
	// maxAnswer bounds the body of an answer.
	maxAnswer   = 8 << 20
	dialTimeout = 5 * time.Second
)

// Client asks the control plane of one server. It may be used concurrently.
type Client struct {
	http *http.Client
}

// Open asks the server whose operator's socket is at path.
func Open(path string) *Client {
	d := net.Dialer{Timeout: dialTimeout}
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is an answer that is not a success.
type Error struct {
	Problem
	Code int // HTTP status code
}

func (e *Error) Error() string { return e.Problem.Error }

// Cluster asks for the state of the cluster. It takes a few seconds when a server is out of reach.
func (c *Client) Cluster(ctx context.Context) (Cluster, error) {
	var state Cluster
	return state, c.exchange(ctx, http.MethodGet, "/v1/cluster", nil, &state)
}

// Tokens lists the tokens without their texts.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	var all []Token
	return all, c.exchange(ctx, http.MethodGet, "/v1/tokens", nil, &all)
}

// Token asks for one token with its text.
func (c *Client) Token(ctx context.Context, id string) (Token, error) {
	var t Token
	return t, c.exchange(ctx, http.MethodGet, "/v1/tokens/"+url.PathEscape(id), nil, &t)
}

// CreateToken makes a token. The answer has its text.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (Token, error) {
	var t Token
	return t, c.exchange(ctx, http.MethodPost, "/v1/tokens", r, &t)
}

// RevokeToken makes a token worthless. Machines that joined by it stay.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.exchange(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil)
}

// Certificates lists the certificates of the server.
func (c *Client) Certificates(ctx context.Context) ([]Certificate, error) {
	var all []Certificate
	return all, c.exchange(ctx, http.MethodGet, "/v1/certificates", nil, &all)
}

// Rotation asks how far the replacement of the authorities is.
func (c *Client) Rotation(ctx context.Context) (Rotation, error) {
	var r Rotation
	return r, c.exchange(ctx, http.MethodGet, "/v1/rotation", nil, &r)
}

// Rotate begins a replacement of the authorities, or checks whether one could begin. It does not wait for its end.
func (c *Client) Rotate(ctx context.Context, request RotationRequest) (Rotation, error) {
	var r Rotation
	return r, c.exchange(ctx, http.MethodPost, "/v1/rotation", request, &r)
}

// Kubeconfig asks for a client configuration. The YAML holds a private key.
func (c *Client) Kubeconfig(ctx context.Context, r KubeconfigRequest) ([]byte, error) {
	return c.do(ctx, http.MethodPost, "/v1/kubeconfig", r)
}

// exchange sends in, if any, as JSON and reads the answer into out, if any.
func (c *Client) exchange(ctx context.Context, method, path string, in, out any) error {
	data, err := c.do(ctx, method, path, in)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("answer to %s %s: %w", method, path, err)
	}
	return nil
}

// do returns the body of the answer. Answers that are not a success come as *Error.
func (c *Client) do(ctx context.Context, method, path string, in any) ([]byte, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the control plane: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("ask the control plane: %s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{Code: resp.StatusCode}
		if json.Unmarshal(data, &e.Problem) != nil || e.Problem.Error == "" {
			e.Problem.Error = fmt.Sprintf("%s %s: %s", method, path, resp.Status)
		}
		return nil, e
	}
	return data, nil
}
