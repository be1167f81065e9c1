package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/tunnel"
)

// front answers Cairn's own paths on the apiserver's port before authentication, and lets all others go on to
// Kubernetes.
type front struct {
	node      string // the machine's own
	addresses []netip.Addr
	clientCA  string       // file; read for each connection of a tunnel, so that a changed authority counts at once
	nodes     *nodeBook    // nil: nothing is known of other nodes
	tunnel    http.Handler // nil: there are no tunnels
	log       *slog.Logger
	now       func() time.Time
	joining   atomic.Pointer[http.Handler] // nil until the cluster is ready to take machines in
	limits    map[string]*limits           // by path, so that those who join keep no member from renewing
}

func newFront(o Options, log *slog.Logger) *front {
	f := &front{node: o.Node, addresses: o.addresses, clientCA: o.authority(pki.ClientCA), log: log, now: time.Now, limits: map[string]*limits{}}
	for _, path := range []string{join.CAPath, join.JoinPath, join.RenewPath} {
		f.limits[path] = newLimits(func() time.Time { return f.now() })
	}
	return f
}

// open lets machines join from now on.
func (f *front) open(joining http.Handler) { f.joining.Store(&joining) }

func (f *front) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case join.CAPath, join.JoinPath, join.RenewPath:
			f.serveJoin(w, r)
		case tunnel.Path:
			f.serveTunnel(w, r)
		default:
			if err := f.refused(r); err != nil {
				f.log.Debug("request of a node that has no certificate any more", "source", r.RemoteAddr, "error", err)
				status := apierrors.NewUnauthorized(err.Error()).Status()
				status.Kind, status.APIVersion = "Status", "v1"
				respond(w, http.StatusUnauthorized, status)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
}

// serveJoin hands a request of anybody to the joining part, a bounded number at a time, once its body is there.
func (f *front) serveJoin(w http.ResponseWriter, r *http.Request) {
	joining, limits := f.joining.Load(), f.limits[r.URL.Path]
	if joining == nil {
		busy(w, "this server is starting")
		return
	}
	source := sourceOf(r.RemoteAddr)
	if !limits.enter(source) {
		busy(w, "too many machines join at this moment")
		return
	}
	defer limits.leave(source)
	control := http.NewResponseController(w)
	if err := errors.Join(control.SetReadDeadline(f.now().Add(joinReadTime)), control.SetWriteDeadline(f.now().Add(joinTime))); err != nil {
		f.log.Warn("no deadline for a joining machine", "error", err)
	}
	// The connection serves others afterwards, which may take as long as they like.
	defer func() { _ = errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{})) }()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, joinBody))
	if err != nil {
		limits.fail(source)
		http.Error(w, "read the request: "+err.Error(), bodyStatus(err))
		return
	}
	if !limits.begin() {
		busy(w, "too many machines join at this moment")
		return
	}
	defer limits.end()
	// A deadline for reading that passes now would be taken for the end of the connection.
	_ = control.SetReadDeadline(time.Time{}) // without one there is none to pass
	ctx, cancel := context.WithTimeout(r.Context(), joinTime)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(body))
	(*joining).ServeHTTP(plainWriter{w}, r)
}

// plainWriter hides the connection's deadlines, which are set here.
type plainWriter struct{ http.ResponseWriter }

func bodyStatus(err error) int {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// busy answers as pkg/join does when a machine is to come again.
func busy(w http.ResponseWriter, message string) {
	w.Header().Set("Retry-After", "1")
	respond(w, http.StatusServiceUnavailable, map[string]string{"code": "unavailable", "text": message})
}

// serveTunnel hands the connection of a node over. It may last for months.
func (f *front) serveTunnel(w http.ResponseWriter, r *http.Request) {
	if f.tunnel == nil {
		http.NotFound(w, r)
		return
	}
	f.tunnel.ServeHTTP(w, r)
}

// identify is nodeOf for the tunnels.
func (f *front) identify(r *http.Request) (node string, ok bool) {
	node, err := f.nodeOf(r)
	if err != nil {
		f.log.Info("tunnel refused", "source", r.RemoteAddr, "error", err)
	}
	return node, err == nil
}
