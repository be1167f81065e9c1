package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

func nodeLook(node func() Node) Look {
	return Look{Name: "node", Do: func(context.Context) Finding {
		n := node()
		if n.Ready {
			return Finding{OK: true, Text: "Ready"}
		}
		text := "not Ready"
		if n.Reason != "" {
			text += ": " + n.Reason
		}
		if n.Message != "" {
			text += ": " + n.Message
		}
		return Finding{Text: text, Remote: !n.Seen}
	}}
}

// stillness is how long the store's index may stand still. Every node renews its lease each 10 s (the kubelet's
// nodeLeaseDurationSeconds of 40, of which it takes a quarter), and one such write may be late.
const stillness = 30 * time.Second

// storeWatch remembers the index from look to look.
type storeWatch struct {
	seen  bool
	grown bool // at least once
	index uint64
	since time.Time // when index was seen first
}

func storeLook(store func(context.Context) (Store, error)) Look {
	var w storeWatch
	return Look{Name: "store", Do: func(ctx context.Context) Finding {
		s, err := store(ctx)
		if err != nil {
			return Finding{Text: "does not answer: " + err.Error()}
		}
		return w.judge(s, time.Now())
	}}
}

// judge wants a leader, a majority, and an index that grows. What the index was before there was a majority is no measure.
func (w *storeWatch) judge(s Store, now time.Time) Finding {
	var f Finding
	switch {
	case !s.Leader:
		*w = storeWatch{}
		// A single voter has nobody else to blame.
		f = Finding{Text: "has no leader", Remote: s.Voters != 1}
	case !s.Quorum:
		*w = storeWatch{}
		f = Finding{Text: fmt.Sprintf("has no majority: %d of %d voters online", s.Online, s.Voters), Remote: s.Voters != 1}
	default:
		f = w.moves(s, now)
	}
	if s.Message != "" {
		f.Text += ": " + s.Message
	}
	return f
}

func (w *storeWatch) moves(s Store, now time.Time) Finding {
	w.grown = w.grown || w.seen && s.Index > w.index
	if !w.seen || s.Index != w.index { // less than before: restored from a snapshot
		w.seen, w.index, w.since = true, s.Index, now
	}
	switch {
	case !w.grown:
		return Finding{Text: "applied index is not seen to move yet"}
	case now.Sub(w.since) > stillness:
		return Finding{Text: fmt.Sprintf("applied index does not move: nothing was written for %s", stillness)}
	case s.Voters > 0:
		return Finding{OK: true, Text: fmt.Sprintf("%d of %d voters online, and the applied index moves", s.Online, s.Voters)}
	}
	return Finding{OK: true, Text: "in quorum, and its applied index moves"}
}

// planeLook asks the API server for /readyz, which lists what is not ready when something is not
// (k8s.io/apiserver/pkg/server/healthz).
func planeLook(plane Access) Look {
	return Look{Name: "control plane", Do: func(ctx context.Context) Finding {
		body, f := ask(ctx, plane, "/readyz", nil)
		if body == nil {
			f.Remote = false // it is this machine's own
			return f
		}
		defer body.Close()
		return Finding{OK: true, Text: "ready"}
	}}
}

// ask makes one GET. Without a body the finding says why there is none.
func ask(ctx context.Context, access Access, path string, query url.Values) (io.ReadCloser, Finding) {
	client, server, err := access(ctx)
	if err != nil {
		return nil, Finding{Text: "no access to the API server yet: " + err.Error()}
	}
	u := server.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, Finding{Text: "ask the API server: " + err.Error()}
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "cairnd")
	res, err := client.Do(req)
	if err != nil {
		return nil, Finding{Text: "the API server cannot be asked: " + cause(ctx, err), Remote: true}
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, Finding{}
	}
	defer res.Body.Close()
	text := "the API server answers " + res.Status
	if words := firstWords(res.Body); words != "" {
		text += ": " + words
	}
	return nil, Finding{Text: text, Remote: res.StatusCode >= 500}
}

// cause is what is wrong with a request, without its address, which may hold secrets and is known.
func cause(ctx context.Context, err error) string {
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// firstWords are the begin of an answer, as evidence.
func firstWords(body io.Reader) string {
	data, err := io.ReadAll(io.LimitReader(body, MaxText))
	if err != nil && len(data) == 0 {
		return ""
	}
	return shorten(string(data), MaxText/2)
}
