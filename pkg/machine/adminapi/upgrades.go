package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/cairn-os/cairn/pkg/machine/upgrade"
	"github.com/cairn-os/cairn/pkg/update"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Upgrades is the machine's part that upgrades; *upgrade.Manager is one.
type Upgrades interface {
	Status() (upgrade.Status, error)
	Plan(ctx context.Context, q upgrade.Request) (update.Plan, error)
	Upgrade(ctx context.Context, q upgrade.Request, tell func(update.Progress)) (update.Plan, error)
	RollBack(ctx context.Context, text string) (restart bool, err error)
	Attempts() ([]history.Attempt, error)
	Clear(version string) error
}

// Event is one line of what POST /v1/upgrade answers: progress, and at the end the plan or an error.
type Event struct {
	Progress *update.Progress `json:"progress,omitempty"`
	Plan     *update.Plan     `json:"plan,omitempty"`
	Error    string           `json:"error,omitempty"`
}

// RollBackRequest says why an operator goes back.
type RollBackRequest struct {
	Text string `json:"text"`
}

// RollBackAnswer says what comes of it.
type RollBackAnswer struct {
	Restart bool `json:"restart"` // the machine restarts now
}

// progressInterval is how often a client hears where an upgrade is.
const progressInterval = 500 * time.Millisecond

// handleUpgrades adds the paths of upgrades. What they begin goes on when the client leaves, until ctx ends.
func (s *Server) handleUpgrades(ctx context.Context, mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		st, err := s.Upgrades.Status()
		if err != nil {
			s.Log.Warn("upgrade status", "error", err)
			st.Problem = err.Error()
		}
		s.answer(w, st)
	})
	mux.HandleFunc("GET /v1/upgrade/attempts", func(w http.ResponseWriter, _ *http.Request) {
		all, err := s.Upgrades.Attempts()
		if err != nil {
			s.fail(w, http.StatusInternalServerError, err)
			return
		}
		s.answer(w, append([]history.Attempt{}, all...))
	})
	mux.HandleFunc("POST /v1/upgrade/plan", func(w http.ResponseWriter, r *http.Request) {
		var q upgrade.Request
		if !s.read(w, r, &q) {
			return
		}
		plan, err := s.Upgrades.Plan(r.Context(), q)
		if err != nil {
			s.failUpgrade(w, err)
			return
		}
		s.answer(w, plan)
	})
	mux.HandleFunc("POST /v1/upgrade", func(w http.ResponseWriter, r *http.Request) {
		var q upgrade.Request
		if s.read(w, r, &q) {
			s.Log.Info("upgrade requested", "version", q.Version, "no_reboot", q.NoReboot)
			s.upgrade(ctx, w, r, q)
		}
	})
	mux.HandleFunc("POST /v1/rollback", func(w http.ResponseWriter, r *http.Request) {
		var q RollBackRequest
		if !s.read(w, r, &q) {
			return
		}
		s.Log.Info("rollback requested", "text", q.Text)
		restart, err := s.Upgrades.RollBack(context.WithoutCancel(r.Context()), q.Text)
		if err != nil {
			s.failUpgrade(w, err)
			return
		}
		s.answer(w, RollBackAnswer{restart})
	})
	mux.HandleFunc("DELETE /v1/upgrade/quarantine/{version}", func(w http.ResponseWriter, r *http.Request) {
		if err := s.Upgrades.Clear(r.PathValue("version")); err != nil {
			s.failUpgrade(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// failUpgrade picks the status for an error of an upgrade.
func (s *Server) failUpgrade(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, upgrade.ErrBusy), errors.Is(err, update.ErrBusy), errors.Is(err, update.ErrRefused), errors.Is(err, update.ErrCurrent):
		s.fail(w, http.StatusConflict, err)
	case errors.Is(err, history.ErrNotQuarantined):
		s.fail(w, http.StatusNotFound, err)
	default:
		s.fail(w, http.StatusInternalServerError, err)
	}
}

// upgrade upgrades and answers with events until that ends or the client leaves.
func (s *Server) upgrade(ctx context.Context, w http.ResponseWriter, r *http.Request, q upgrade.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(&flushing{w: w, c: http.NewResponseController(w)})
	var mu sync.Mutex // guards out, which is no more when this returns
	gone := false
	tell := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return
		}
		if err := out.Encode(e); err != nil {
			s.Log.Info("answer upgrade", "error", err)
		}
	}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		gone = true
	}()
	end := make(chan struct{})
	go func() {
		defer close(end)
		var last time.Time
		plan, err := s.Upgrades.Upgrade(ctx, q, func(p update.Progress) {
			if news := time.Since(last) >= progressInterval; news || p.Total == 0 || p.Done == p.Total {
				last = time.Now()
				tell(Event{Progress: &p})
			}
		})
		e := Event{Plan: &plan}
		if err != nil {
			e.Error = err.Error()
			s.Log.Error("upgrade", "error", err)
		}
		tell(e)
	}()
	select {
	case <-r.Context().Done():
	case <-end:
	}
}

// read decodes a request's body; when it cannot, it has answered.
func (s *Server) read(w http.ResponseWriter, r *http.Request, to any) bool {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		s.fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
		return false
	}
	return true
}

func (s *Server) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Log.Warn("answer", "error", err)
	}
}
