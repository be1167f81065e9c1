package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
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
		Refresh: func(ctx context.Context) { askKubelet(ctx, client, o.Node) },
		Stage:   func(s rotation.Stage) { gauge.Set(float64(s.Rank())) },
	})
	return component{"authorities", server.Run}
}

// askKubelet has the apiserver ask a kubelet. Its client of kubelets looks each five minutes whether the authority's file
// changed, but only when a request passes: a session of exec goes by what an earlier request found.
func askKubelet(ctx context.Context, client kubernetes.Interface, node string) {
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	_ = client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("healthz").Do(ctx).Error() // what it answers does not matter
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
	s, err := rotation.Begin(ctx, o)
	if err != nil {
		return admin.Rotation{}, err
	}
	a, err := r.look(ctx)
	if err != nil { // no reason to say that it has not begun
		r.log.Info("authorities: their replacement has begun, and cannot be looked at", "error", err)
		a.ID, a.Stage, a.Since, a.Begun, a.By = s.ID, string(s.Stage), s.Since, s.Begun, s.By
	}
	return a, nil
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
	if len(n.Addresses) == 0 {
		return errors.New("no address of it is known")
	}
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	answers := make(chan error, len(n.Addresses))
	for _, a := range n.Addresses { // at once: one that nothing answers on takes all the time
		go func() {
			answers <- r.sameAuthority(ctx, net.JoinHostPort(a.String(), strconv.Itoa(r.options.Port)))
		}()
	}
	var first error // what comes before the time is over says more
	for range n.Addresses {
		err := <-answers
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// sameAuthority asks a server which authority signs there. It must be the one that does here: successors that this server
// makes would be of no use to the other otherwise. What is trusted besides, from a replacement that was given up, does not
// matter: the next one takes it away.
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
	their, err := cert.ParseCertsPEM(theirs)
	if err != nil {
		return fmt.Errorf("its authority of servers: %w", err)
	}
	our, err := cert.CertsFromFile(r.options.authority(pki.ServerCA))
	if err != nil {
		return fmt.Errorf("authority of servers: %w", err)
	}
	if their[0].Equal(our[0]) {
		return nil
	}
	older := "its"
	if our[0].NotAfter.Before(their[0].NotAfter) {
		older = "this server's"
	}
	return fmt.Errorf("it has another authority than this server, %s is the older one: remove the servers whose authority is the older one, and let them join again", older)
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
