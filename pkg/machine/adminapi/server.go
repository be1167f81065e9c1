// Package adminapi is the machine's administration interface: HTTP on a unix socket that only root can open.
//
//	GET  /v1/status                         the node's status (status.Status) as JSON
//	GET  /v1/logs/<process>?lines=N&follow=1  its log as text; follow streams until the client leaves
//	POST /v1/processes/<process>/restart    also start, stop
//	POST /v1/reboot, POST /v1/poweroff      begin the orderly shutdown
//	GET  /v1/upgrade                        where upgrades stand (upgrade.Status)
//	GET  /v1/upgrade/attempts               the last ones, the newest first
//	POST /v1/upgrade/plan                   what POST /v1/upgrade would do (upgrade.Request, update.Plan)
//	POST /v1/upgrade                        upgrades; answers with lines of JSON (Event) until it is done
//	POST /v1/rollback                       goes back (RollBackRequest, RollBackAnswer)
//	DELETE /v1/upgrade/quarantine/<version>  lets a version be tried again
//
// Errors are {"error": "..."} with a matching HTTP status. Paths and fields are stable; new ones may come.
package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/status"
)

// Path is the socket of the node's cairnd.
const Path = "/run/cairn/cairnd.sock"

// Init is what the interface passes on to PID 1; initctl.Client is one.
type Init interface {
	Do(ctx context.Context, req initctl.Request) error
}

// Server answers the interface.
type Server struct {
	Init   Init
	Status func(ctx context.Context) (status.Status, error)
	LogDir string
	// Upgrades is nil on a machine without slots.
	Upgrades Upgrades
	Log      *slog.Logger
}

const (
	defaultLines = 100
	maxBody      = 4 << 10
)

// Listen makes the socket at path, mode 0600, in place of one that an earlier run left.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old admin socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("restrict admin socket: %w", err)
	}
	return ln, nil
}

// Serve answers on ln until ctx ends; running requests, followed logs too, end with it.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler(ctx),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin socket: %w", err)
	}
	return nil
}

func (s *Server) handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/logs/{process}", s.logs)
	for _, verb := range []initctl.Verb{initctl.VerbStart, initctl.VerbStop, initctl.VerbRestart} {
		mux.HandleFunc("POST /v1/processes/{process}/"+string(verb), s.tell(verb))
	}
	for _, verb := range []initctl.Verb{initctl.VerbReboot, initctl.VerbPowerOff} {
		mux.HandleFunc("POST /v1/"+string(verb), s.tell(verb))
	}
	if s.Upgrades != nil {
		s.handleUpgrades(ctx, mux)
	}
	return http.MaxBytesHandler(mux, maxBody)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.Status(r.Context())
	if err != nil {
		s.fail(w, http.StatusServiceUnavailable, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(st); err != nil {
		s.Log.Warn("answer status", "error", err)
	}
}

// tell passes a verb on to init.
func (s *Server) tell(verb initctl.Verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := s.Init.Do(r.Context(), initctl.Request{Verb: verb, Process: r.PathValue("process")})
		var remote *initctl.RemoteError
		switch {
		case errors.As(err, &remote), errors.Is(err, initctl.ErrRequest):
			s.fail(w, http.StatusBadRequest, err)
		case err != nil:
			s.fail(w, http.StatusServiceUnavailable, err)
		default:
			s.Log.Info("request", "verb", verb, "process", r.PathValue("process"))
			w.WriteHeader(http.StatusNoContent)
		}
	}
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	opt := logfile.Options{Lines: defaultLines, Follow: r.FormValue("follow") == "1"}
	if text := r.FormValue("lines"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			s.fail(w, http.StatusBadRequest, fmt.Errorf("lines=%.20q is no number", text))
			return
		}
		opt.Lines = n
	}
	out := &flushing{w: w, c: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err := logfile.Copy(r.Context(), out, s.LogDir, r.PathValue("process"), opt)
	switch {
	case err == nil || r.Context().Err() != nil:
	case out.wrote:
		s.Log.Warn("copy log", "process", r.PathValue("process"), "error", err)
	case errors.Is(err, logfile.ErrUnknown):
		s.fail(w, http.StatusNotFound, err)
	default:
		s.fail(w, http.StatusInternalServerError, err)
	}
}

func (s *Server) fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(problem{Error: err.Error()}); err != nil {
		s.Log.Warn("answer error", "error", err)
	}
}

type problem struct {
	Error string `json:"error"`
}

// flushing sends what is written at once, so that a followed log does not lag behind a buffer.
type flushing struct {
	w     http.ResponseWriter
	c     *http.ResponseController
	wrote bool
}

func (f *flushing) Write(b []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.c.Flush()
}
