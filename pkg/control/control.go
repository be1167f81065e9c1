// Package control runs the control plane of a server in one process: the apiserver, the controller-manager and the
// scheduler of Kubernetes, unpatched.
//
// Their feature gates, metrics and configz registrations are global to the process, so each runs at most once in it and
// none is restarted in place: when one ends, Run returns and the supervisor starts the process anew. There is no leader
// election, as there is one of each; upstream would end the process on lost leadership.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// controllersGrace bounds how long the controllers may take to stop, serverGrace the apiserver. An apiserver that was
	// not ready serves nobody, and takes no notice of the end of its context before it would be: it gets startingGrace.
	controllersGrace = 5 * time.Second
	serverGrace      = 10 * time.Second
	startingGrace    = time.Second
)

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

// Run runs the control plane until ctx ends, then stops it in order: first what asks the apiserver, then the apiserver.
// It calls ready once all parts work and the objects that pods need exist. A part that ends by itself is an error.
func Run(ctx context.Context, log *slog.Logger, o Options, ready func() error) error {
	begin := time.Now()
	if err := o.prepare(log); err != nil {
		return err
	}
	if len(o.Etcd.Servers) > 0 {
		if err := o.Etcd.await(ctx, log, o.say); err != nil {
			return nil // asked to stop
		}
	}
	set, err := newComponents(o)
	if err != nil {
		return err
	}
	ends := make(chan ended, 4)
	server := start(ctx, component{"kube-apiserver", set.runAPIServer}, ends)
	grace := startingGrace
	defer func() { stop(log, grace, server) }()

	starting := make(chan error, 1)
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	var controllers []*running
	go func() { starting <- awaitServer(startCtx, o) }()
	if err := await(ctx, starting, ends); err != nil || ctx.Err() != nil {
		return err
	}
	grace = serverGrace
	log.Info("apiserver is ready", "after", time.Since(begin).Round(time.Millisecond))

	for _, c := range []component{{"kube-controller-manager", set.runControllerManager}, {"kube-scheduler", set.runScheduler}} {
		controllers = append(controllers, start(ctx, c, ends))
	}
	defer func() { stop(log, controllersGrace, controllers...) }()
	go func() { starting <- o.bootstrap(startCtx, set.schedulerSynced) }()
	if err := await(ctx, starting, ends); err != nil || ctx.Err() != nil {
		return err
	}
	log.Info("control plane is ready", "after", time.Since(begin).Round(time.Millisecond))
	if err := ready(); err != nil {
		return fmt.Errorf("notify readiness: %w", err)
	}

	go func() { starting <- o.renew(startCtx, log) }()
	go o.keepNode(startCtx, log)
	return await(ctx, starting, ends)
}

// await returns when step does, when a component ends, or without an error when ctx ends.
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

// adminConfig is a client of the own apiserver with an administrator's rights.
func (o Options) adminConfig() (*rest.Config, error) {
	return clientcmd.BuildConfigFromFlags("", o.AdminKubeconfig)
}

func (o Options) adminClient() (*kubernetes.Clientset, error) {
	cfg, err := o.adminConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}
