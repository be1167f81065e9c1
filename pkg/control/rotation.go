package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/rotation"
	"github.com/cairn-os/cairn/pkg/token"
)

// rotationLeader is a controller beside those of Options: it moves a replacement of the authorities on. It is made anew
// for each term, before Kubernetes' controllers read the authorities' files.
func (o Options) rotationLeader(log *slog.Logger) (Controller, error) {
	leader, err := rotation.NewLeader(rotation.LeaderOptions{Node: o.Node, Dir: o.tls(), Life: o.Life, Log: log})
	if err != nil {
		return Controller{}, err
	}
	return Controller{Name: "authorities", Run: func(ctx context.Context, client kubernetes.Interface) error {
		err := leader.Run(ctx, client)
		if errors.Is(err, rotation.ErrAnew) {
			err = fmt.Errorf("%w: %w", errBeginAnew, err)
		}
		return err
	}}, nil
}

// rotationServer is this server's own part.
func (o Options) rotationServer(client kubernetes.Interface, certificates *certificateFiles, log *slog.Logger) component {
	gauge := metrics.NewGauge(&metrics.GaugeOpts{
		Name: "cairn_rotation_stage", StabilityLevel: metrics.ALPHA,
		Help: "How far the replacement of the authorities is: 0 none, 1 trust, 2 sign, 3 retire.",
	})
	if err := legacyregistry.Register(gauge); err != nil {
		log.Warn("no metric of the replacement of the authorities", "error", err) // another control plane in the process has it
	}
	server := rotation.NewServer(rotation.ServerOptions{
		Client: client, Node: o.Node, Dir: o.tls(), Change: certificates.change, Log: log,
		Stage: func(s rotation.Stage) { gauge.Set(float64(s.Rank())) },
	})
	return component{"authorities", server.Run}
}

// rotators is how the operator has the authorities replaced.
type rotators struct {
	options Options
	client  kubernetes.Interface
	config  *rest.Config // of the own apiserver; others take the same credentials
	log     *slog.Logger
	now     func() time.Time
}

func (r *rotators) begin(ctx context.Context, check bool) (admin.Rotation, error) {
	ctx, cancel := context.WithTimeout(ctx, clusterTime)
	defer cancel()
	o := rotation.BeginOptions{Client: r.client, PKI: r.options.pki(), By: r.options.Node, Present: r.present, Log: r.log, Now: r.now}
	if check {
		if err := rotation.Check(ctx, o); err != nil {
			return admin.Rotation{}, err
		}
		return r.look(ctx)
	}
	if _, err := rotation.Begin(ctx, o); err != nil {
		return admin.Rotation{}, err
	}
	return r.look(ctx)
}

// look tells how far a replacement is. Without one, it tells which authority is in use.
func (r *rotators) look(ctx context.Context) (admin.Rotation, error) {
	certs, err := cert.CertsFromFile(r.options.authority(pki.ServerCA))
	if err != nil {
		return admin.Rotation{}, fmt.Errorf("authority of servers: %w", err)
	}
	a := admin.Rotation{Authority: token.Pin(certs[0].Raw)}
	s, err := rotation.Look(ctx, r.client, r.options.tls(), r.options.Life, r.now())
	if s != nil {
		a.ID, a.Stage, a.Since, a.Begun, a.By = s.ID, string(s.Stage), s.Since, s.Begun, s.By
		a.Waiting, a.Settles = s.Waiting, s.Settles
	}
	return a, err
}

// present tells why a server or a witness cannot take part in a replacement of the authorities, or nil.
func (r *rotators) present(ctx context.Context, n join.NodeRecord) error {
	if n.Name == r.options.Node {
		return nil
	}
	if n.Role == membership.Witness {
		if !r.options.hasStore() {
			return errors.New("there is no store for it")
		}
		online, err := r.options.memberOnline(ctx, n.Name)
		if err == nil && !online {
			err = errors.New("the store does not hear it")
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	err := errors.New("no address of it is known")
	for _, a := range n.Addresses {
		if err = r.sameAuthority(ctx, net.JoinHostPort(a.String(), strconv.Itoa(r.options.Port))); err == nil {
			return nil
		}
	}
	return err
}

// sameAuthority asks a server for what it trusts, which must be what this one does: successors that this one makes would
// be of no use to it otherwise.
func (r *rotators) sameAuthority(ctx context.Context, address string) error {
	config := rest.CopyConfig(r.config)
	config.Host = "https://" + address
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	theirs, err := get(ctx, client, config.Host+join.CAPath, nil)
	var answer struct{ Text string }
	if err != nil && json.Unmarshal(theirs, &answer) == nil && answer.Text != "" {
		return fmt.Errorf("it says: %s", answer.Text) // it is starting, most of the time
	}
	if err != nil {
		return err
	}
	ours, err := os.ReadFile(r.options.authority(pki.ServerCA))
	if err != nil {
		return fmt.Errorf("authority of servers: %w", err)
	}
	if strings.TrimSpace(string(theirs)) != strings.TrimSpace(string(ours)) {
		return errors.New("it trusts other authorities than this server")
	}
	return nil
}

func (op *operator) rotation(r *http.Request) (any, error) { return op.rotators().look(r.Context()) }

func (op *operator) rotate(r *http.Request) (any, error) {
	var request admin.RotationRequest
	if err := decode(r, &request); err != nil {
		return nil, err
	}
	return op.rotators().begin(r.Context(), request.Check)
}

func (op *operator) rotators() *rotators {
	return &rotators{options: op.options, client: op.client, config: op.cluster.config, log: op.log, now: op.cluster.now}
}
