package control

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
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/rotation"
)

const (
	operatorBody = 64 << 10
	// operatorGrace is how long requests of the operator may go on when the server stops.
	operatorGrace = time.Second
)

// operator answers the machine's operator on a socket for root alone. See pkg/control/admin.
type operator struct {
	options Options
	client  kubernetes.Interface
	cluster *clusterView
	log     *slog.Logger
}

// serve listens until ctx ends.
func (op *operator) serve(ctx context.Context) error {
	l, err := listenUnix(ctx, op.options.AdminSocket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: op.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(op.log.Handler(), slog.LevelInfo)}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", op.options.AdminSocket, err)
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), operatorGrace)
	defer cancel()
	if server.Shutdown(limit) != nil {
		return server.Close()
	}
	return nil
}

// listenUnix opens the socket at path for root alone. A socket that a killed process left is removed.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// Bound under another name until its mode is right: there is no moment in which others may connect.
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", next)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(next, 0o600), os.Rename(next, path)); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

func (op *operator) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, answer func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { op.answer(w, r, answer) })
	}
	handle("GET /v1/cluster", func(r *http.Request) (any, error) { return op.cluster.look(r.Context()), nil })
	handle("GET /v1/certificates", func(*http.Request) (any, error) { return op.cluster.allCertificates() })
	handle("GET /v1/rotation", op.rotation)
	handle("POST /v1/rotation", op.rotate)
	handle("GET /v1/tokens", op.listTokens)
	handle("POST /v1/tokens", op.createToken)
	handle("GET /v1/tokens/{id}", op.tellToken)
	handle("DELETE /v1/tokens/{id}", op.revokeToken)
	handle("POST /v1/kubeconfig", func(r *http.Request) (any, error) {
		var request admin.KubeconfigRequest
		if err := decode(r, &request); err != nil {
			return nil, err
		}
		return op.kubeconfig(request)
	})
	return mux
}

// yamlText is an answer that is not JSON.
type yamlText []byte

// answer writes what the function returned: nothing, YAML as it is, anything else as JSON, and an error as a problem.
func (op *operator) answer(w http.ResponseWriter, r *http.Request, ask func(*http.Request) (any, error)) {
	value, err := ask(r)
	if err != nil {
		op.log.Info("operator's request not served", "method", r.Method, "path", r.URL.Path, "error", err)
		respond(w, statusOf(err), admin.Problem{Error: err.Error()})
		return
	}
	switch v := value.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case yamlText:
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(v) // the operator has gone when this fails
	default:
		respond(w, http.StatusOK, v)
	}
}

func respond(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the operator has gone when this fails
}

// refusal is an error with the HTTP status that tells its kind.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Sprintf(format, args...)}
}

func statusOf(err error) int {
	var r refusal
	switch {
	case errors.As(err, &r):
		return r.status
	case apierrors.IsNotFound(err):
		return http.StatusNotFound
	case join.IsRefusal(err):
		return http.StatusBadRequest
	case errors.Is(err, rotation.ErrRefused):
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// decode reads the request's body strictly: a misspelt field must not become a token for ever.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, operatorBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return refuse(http.StatusBadRequest, "the request: %v", err)
	}
	return nil
}
