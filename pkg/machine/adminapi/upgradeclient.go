package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// ask makes a request with in as JSON, unless it is nil, and decodes the answer to out, unless that is nil.
func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// UpgradeStatus asks where upgrades stand.
func (c *Client) UpgradeStatus(ctx context.Context) (upgrade.Status, error) {
	var st upgrade.Status
	return st, c.ask(ctx, http.MethodGet, "/v1/upgrade", nil, &st)
}

// Attempts asks for the last upgrades, the newest first.
func (c *Client) Attempts(ctx context.Context) ([]history.Attempt, error) {
	var all []history.Attempt
	return all, c.ask(ctx, http.MethodGet, "/v1/upgrade/attempts", nil, &all)
}

// PlanUpgrade asks what Upgrade would do. That reads both slots, which takes its time.
func (c *Client) PlanUpgrade(ctx context.Context, q upgrade.Request) (update.Plan, error) {
	var plan update.Plan
	return plan, c.patient().ask(ctx, http.MethodPost, "/v1/upgrade/plan", q, &plan)
}

// ErrRestarts says that the machine went down before it could answer: it restarts into what was asked for.
var ErrRestarts = errors.New("the machine restarts")

// Upgrade upgrades and tells progress. When ctx ends, the upgrade goes on. Its error is ErrRestarts when the machine was
// faster than its answer.
func (c *Client) Upgrade(ctx context.Context, q upgrade.Request, progress func(update.Progress)) (update.Plan, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return update.Plan{}, fmt.Errorf("encode request: %w", err)
	}
	res, err := c.patient().send(ctx, http.MethodPost, "/v1/upgrade", bytes.NewReader(data))
	if err != nil {
		return update.Plan{}, err
	}
	defer res.Body.Close()
	step := ""
	for lines := json.NewDecoder(res.Body); ; {
		var e Event
		if err := lines.Decode(&e); err != nil {
			if step == update.StepReboot {
				return update.Plan{}, ErrRestarts
			}
			return update.Plan{}, fmt.Errorf("follow the upgrade: %w", err)
		}
		if e.Progress != nil {
			step = e.Progress.Step
			progress(*e.Progress)
		}
		if e.Error != "" {
			err = errors.New(e.Error)
		}
		if e.Plan != nil {
			return *e.Plan, err
		}
	}
}

// RollBack goes back; restart says whether the machine restarts now.
func (c *Client) RollBack(ctx context.Context, text string) (restart bool, err error) {
	var a RollBackAnswer
	err = c.ask(ctx, http.MethodPost, "/v1/rollback", RollBackRequest{text}, &a)
	return a.Restart, err
}

// ClearQuarantine lets a version be tried again.
func (c *Client) ClearQuarantine(ctx context.Context, version string) error {
	return c.ask(ctx, http.MethodDelete, "/v1/upgrade/quarantine/"+url.PathEscape(version), nil, nil)
}

// patient is a client that waits as long as ctx for the begin of an answer.
func (c *Client) patient() *Client {
	t, ok := c.http.Transport.(*http.Transport)
	if !ok {
		return c
	}
	t = t.Clone()
	t.ResponseHeaderTimeout = 0
	return &Client{http: &http.Client{Transport: t}}
}
