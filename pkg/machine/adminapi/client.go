package adminapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/status"
)

// Client talks to the cairnd that listens at a socket.
type Client struct{ http *http.Client }

// NewClient returns a client of the socket at path. It connects with each request.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableKeepAlives: true, ResponseHeaderTimeout: 15 * time.Second,
	}}}
}

// RemoteError is what cairnd answered.
type RemoteError struct {
	Code int // the HTTP status
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

// Status asks for the node's status.
func (c *Client) Status(ctx context.Context) (status.Status, error) {
	var st status.Status
	res, err := c.do(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return st, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		return st, fmt.Errorf("decode status: %w", err)
	}
	return st, nil
}

// Logs copies the log of a process to w; with Follow until ctx ends.
func (c *Client) Logs(ctx context.Context, w io.Writer, process string, opt logfile.Options) error {
	query := url.Values{"lines": {strconv.Itoa(opt.Lines)}}
	if opt.Follow {
		query.Set("follow", "1")
	}
	res, err := c.do(ctx, http.MethodGet, "/v1/logs/"+url.PathEscape(process), query)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(w, res.Body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// Do passes a request on to init.
func (c *Client) Do(ctx context.Context, req initctl.Request) error {
	path := "/v1/" + string(req.Verb)
	if req.Process != "" {
		path = "/v1/processes/" + url.PathEscape(req.Process) + "/" + string(req.Verb)
	}
	res, err := c.do(ctx, http.MethodPost, path, nil)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// do makes a request; path is escaped. An answer that is no success is a *RemoteError.
func (c *Client) do(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	return c.send(ctx, method, path+"?"+query.Encode(), nil)
}

// send is do with a body.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://cairnd"+path, body)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask cairnd: %w", err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	var p problem
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&p); err != nil || p.Error == "" {
		p.Error = "cairnd answered " + res.Status
	}
	return nil, &RemoteError{Code: res.StatusCode, Text: p.Error}
}
