// Package control runs the control plane of a server in one process: the apiserver, the controller-manager and the
// scheduler of Kubernetes, unpatched, and Cairn's own part of a server: joining, tunnels to nodes, certificates, and what
// the operator asks.
//
// Every server has an apiserver. The controllers, Kubernetes' and Cairn's own, work on one server at a time: on the one
// that holds a lease (see leadership). Upstream's own leader election would end the process when a lease is lost; here
// the controllers end, and begin anew in the same process when the lease comes back. Feature gates are global to the
// process, so arguments are parsed once. The apiserver runs once in a process: when it ends by itself, Run returns and
// the supervisor starts the process anew. Pods, kubelet and store notice none of that.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cairn-os/cairn/pkg/tunnel"
)

const (
	// controllersGrace bounds how long the controllers may take to stop, serverGrace the apiserver. An apiserver that was
	// not ready serves nobody, and takes no notice of the end of its context before it would be: it gets startingGrace.
	controllersGrace = 5 * time.Second
	serverGrace      = 10 * time.Second
	startingGrace    = time.Second
)

// Run runs the control plane until ctx ends, then stops it in order: first what asks the apiserver, then the apiserver.
// It calls ready once the apiserver is ready and, on the server whose controllers are at work, once they are and the
// objects that pods need exist. A part that ends by itself is an error.
func Run(ctx context.Context, log *slog.Logger, o Options, ready func() error) (err error) {
	begin := time.Now()
	p, err := newPlane(ctx, log, o)
	if err != nil || ctx.Err() != nil {
		return err
	}
	// What the apiserver needs, and the apiserver. It stops last. Controllers that did not end must not go on meanwhile.
	defer func() {
		if !errors.Is(err, errControllersStuck) {
			p.stopServer()
		}
	}()
	p.startServer(ctx)
	if err := p.await(ctx, p.serverReady); err != nil || ctx.Err() != nil {
		return err
	}
	log.Info("apiserver is ready", "after", time.Since(begin).Round(time.Millisecond))
	// Tunnels need it, and what makeObjects writes may need a tunnel, to a webhook.
	p.server = append(p.server, start(ctx, component{"node records", p.nodes.run}, p.ends))
	if err := p.await(ctx, p.makeObjects); err != nil || ctx.Err() != nil {
		return err
	}
	// From here on machines may join, and this server takes part in leading. What asks the apiserver stops first.
	defer func() {
		if !errors.Is(err, errControllersStuck) {
			p.stopClients()
		}
	}()
	p.startClients(ctx)
	if err := p.await(ctx, p.leadership.awaitSettled); err != nil || ctx.Err() != nil {
		return err
	}
	log.Info("control plane is ready", "after", time.Since(begin).Round(time.Millisecond), "controllers", p.leadership.leader())
	if err := ready(); err != nil {
		return fmt.Errorf("notify readiness: %w", err)
	}
	return p.await(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil })
}

// plane is a control plane that runs. Run alone uses it.
type plane struct {
	options    Options
	log        *slog.Logger
	components *components
	front      *front
	client     kubernetes.Interface // of the own apiserver, with an administrator's rights
	config     *rest.Config
	leadership *leadership
	tunnels    *tunnel.Server // nil: there are none
	nodes      *nodeBook

	ends    chan ended
	server  []*running // in the order of their start
	clients []*running
	grace   time.Duration // for the apiserver
}

// newPlane writes all files, waits for an etcd that somebody else runs, and parses the arguments.
func newPlane(ctx context.Context, log *slog.Logger, o Options) (*plane, error) {
	o.rereadCertificates()
	if err := o.prepare(log); err != nil {
		return nil, err
	}
	if len(o.Etcd.Servers) > 0 {
		if err := o.Etcd.await(ctx, log, o.say); err != nil {
			return nil, nil // asked to stop
		}
	}
	p := &plane{options: o, log: log, front: newFront(o, log), ends: make(chan ended, 16), grace: startingGrace}
	var err error
	if p.components, err = newComponents(o); err != nil {
		return nil, err
	}
	if p.config, err = o.adminConfig(); err != nil {
		return nil, err
	}
	if p.client, err = kubernetes.NewForConfig(p.config); err != nil {
		return nil, err
	}
	work := &controllers{p.components, o.Controllers, func() (Controller, error) { return o.rotationLeader(log) }, p.client, log}
	if p.leadership, err = newLeadership(o, p.config, log, work.run); err != nil {
		return nil, err
	}
	p.nodes = newNodeBook(p.client, slices.Concat(o.Settings.PodCIDRs, o.Settings.ServiceCIDRs))
	p.front.nodes = p.nodes
	return p, p.makeTunnels()
}

func (p *plane) makeTunnels() error {
	if !p.options.Tunnels {
		return nil
	}
	var err error
	p.tunnels, err = tunnel.NewServer(tunnel.ServerOptions{
		Socket: p.options.egressSocket(), Node: p.options.Node, Addresses: p.nodes.addresses, IsServer: p.nodes.isServer, Log: p.log,
	})
	if err != nil {
		return err
	}
	p.nodes.gone = p.tunnels.End
	p.front.tunnel = p.tunnels.Handler(p.front.identify)
	return nil
}

func (p *plane) startServer(ctx context.Context) {
	if p.tunnels != nil {
		p.server = append(p.server, start(ctx, component{"tunnels", p.tunnels.Run}, p.ends))
	}
	p.server = append(p.server, start(ctx, component{apiserverName, func(ctx context.Context) error {
		return p.components.runAPIServer(ctx, p.front.wrap)
	}}, p.ends))
}

func (p *plane) serverReady(ctx context.Context) error {
	if err := awaitServer(ctx, p.client); err != nil {
		return err
	}
	p.grace = serverGrace
	return nil
}

func (p *plane) makeObjects(ctx context.Context) error {
	return p.options.bootstrap(ctx, p.client, p.log)
}

// startClients starts what asks the apiserver.
func (p *plane) startClients(ctx context.Context) {
	o := p.options
	p.front.open(o.joinServer(p.client, p.log).Handler())
	files := &certificateFiles{options: o, log: p.log}
	all := []component{
		{"controllers", p.leadership.run},
		{"certificates", func(ctx context.Context) error { return files.renew(ctx, newExpiry(o, p.client, p.log)) }},
		o.rotationServer(p.client, files, p.log),
	}
	if o.AdminSocket != "" {
		all = append(all, component{"operator", p.operator().serve})
	}
	for _, c := range all {
		p.clients = append(p.clients, start(ctx, c, p.ends))
	}
}

func (p *plane) operator() *operator {
	o := p.options
	view := &clusterView{node: o.Node, port: o.Port, tls: o.tls(), client: p.client, config: p.config, leader: p.leadership.leader, store: o.openStore, now: time.Now}
	op := &operator{options: o, cluster: view, client: p.client, log: p.log}
	view.rotation = op.rotators().look
	return op
}

func (p *plane) stopClients() { stop(p.log, controllersGrace+2*time.Second, p.clients...) }

func (p *plane) stopServer() {
	for i := len(p.server) - 1; i >= 0; i-- {
		stop(p.log, p.grace, p.server[i])
	}
}

// await returns when step has returned, when a component ends, or without an error when ctx ends.
func (p *plane) await(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- step(ctx) }()
	return await(ctx, done, p.ends)
}

// component is one of the parts that Run runs. Its run returns when its context ends, or earlier with an error.
type component struct {
	name string
	run  func(context.Context) error
}

// running is a started component.
type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// ended tells that a component's run returned.
type ended struct {
	name string
	err  error
}

func await(ctx context.Context, step <-chan error, ends <-chan ended) error {
	select {
	case err := <-step:
		if ctx.Err() != nil {
			return nil
		}
		return err
	case e := <-ends:
		if ctx.Err() != nil {
			return nil
		}
		if e.err == nil {
			e.err = errors.New("returned without being asked to")
		}
		return fmt.Errorf("%s ended: %w", e.name, e.err)
	case <-ctx.Done():
		return nil
	}
}

// start runs c under a context of its own: components end when they are stopped, not when ctx ends.
func start(ctx context.Context, c component, ends chan<- ended) *running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{name: c.name, cancel: cancel, done: make(chan struct{})}
	go func() {
		err := c.run(ctx)
		close(r.done)
		ends <- ended{c.name, err}
	}()
	return r
}

// stop ends the components and waits for them, at most for grace.
func stop(log *slog.Logger, grace time.Duration, all ...*running) {
	for _, r := range all {
		r.cancel()
	}
	late := time.After(grace)
	for _, r := range all {
		select {
		case <-r.done:
			log.Info("stopped", "component", r.name)
		case <-late:
			log.Warn("did not stop in time", "component", r.name, "grace", grace)
			return
		}
	}
}

// adminConfig is that of a client of the own apiserver with an administrator's rights. It rereads its certificate. Many
// machines may join at the same moment: client-go's limit of 5 requests a second would make them wait.
func (o Options) adminConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.componentConfig(ownAdmin))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 200
	return config, nil
}
