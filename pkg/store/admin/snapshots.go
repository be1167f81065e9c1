package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
)

// ErrDamagedCopy says that what arrived is not the snapshot that was sent.
var ErrDamagedCopy = errors.New("the copy is not whole")

// Take has the leader take a snapshot. It stays on the leader, which the
// answer names.
func (c *Client) Take(ctx context.Context) (Snapshot, error) {
	var s Snapshot
	err := c.Do(ctx, http.MethodPost, "/v1/snapshot", nil, &s)
	return s, err
}

// Snapshots lists the snapshots on a member, the newest first; 0 is the one
// asked.
func (c *Client) Snapshots(ctx context.Context, on ID) ([]Snapshot, error) {
	var all []Snapshot
	err := c.Do(ctx, http.MethodGet, "/v1/snapshots"+memberQuery(on), nil, &all)
	return all, err
}

// Lead hands leadership over.
func (c *Client) Lead(ctx context.Context, to ID) error {
	return c.Do(ctx, http.MethodPost, "/v1/leader", Lead{To: to}, nil)
}

// Download writes a snapshot to w, from whichever member has it, and makes sure
// that all of it arrived: a snapshot ends with the SHA-256 of what is before.
func (c *Client) Download(ctx context.Context, s Snapshot, w io.Writer) error {
	path := "/v1/snapshots/" + url.PathEscape(s.Name) + memberQuery(s.Member)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://store"+path, nil)
	if err != nil {
		return fmt.Errorf("download %s: %w", s.Name, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("download %s: %w", s.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return errors.Join(answered(http.MethodGet, path, resp, data), err)
	}
	sum := trailing{w: w, hash: sha256.New()}
	n, err := io.Copy(&sum, resp.Body)
	if err != nil {
		return fmt.Errorf("download %s: %w", s.Name, err)
	}
	if n != s.Size {
		return fmt.Errorf("download %s: %w: %d of %d bytes arrived", s.Name, ErrDamagedCopy, n, s.Size)
	}
	if err := sum.check(s.Hash); err != nil {
		return fmt.Errorf("download %s: %w", s.Name, err)
	}
	return nil
}

func memberQuery(id ID) string {
	if id == 0 {
		return ""
	}
	return "?member=" + id.String()
}

// answered is the error in an answer that is not a success.
func answered(method, path string, resp *http.Response, body []byte) error {
	e := &Error{Code: resp.StatusCode}
	if json.Unmarshal(body, &e.Problem) != nil || e.Problem.Error == "" {
		e.Problem.Error = fmt.Sprintf("%s %s: %s", method, path, resp.Status)
	}
	return e
}

// trailing passes bytes on and hashes all but the last 32.
type trailing struct {
	w    io.Writer
	hash hash.Hash
	tail []byte
}

func (t *trailing) Write(b []byte) (int, error) {
	t.tail = append(t.tail, b...)
	if over := len(t.tail) - sha256.Size; over > 0 {
		_, _ = t.hash.Write(t.tail[:over]) // A hash takes everything.
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
	return t.w.Write(b)
}

// check compares the last bytes with the hash of the others, and with want if
// that is known.
func (t *trailing) check(want string) error {
	got, end := hex.EncodeToString(t.hash.Sum(nil)), hex.EncodeToString(t.tail)
	if got != end || want != "" && end != want {
		return fmt.Errorf("%w: its SHA-256 is %s, at its end is %s, and %q was announced", ErrDamagedCopy, got, end, want)
	}
	return nil
}
