package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
)

const (
	// A controller of Cairn's own that ended is started again after pauses that double from the first to the last.
	controllerFirstPause, controllerLastPause = time.Second, time.Minute
	// controllersLast bounds how long they take to end when one of them wishes it. The lease is held meanwhile.
	controllersLast = time.Minute
)

// controllers are what works on one server of the cluster at a time.
type controllers struct {
	components *components
	own        []Controller
	rotation   func() (Controller, error) // makes the one more of a term
	client     kubernetes.Interface
	log        *slog.Logger
}

// run works until ctx ends and all has ended, or until a part of Kubernetes ends by itself. It calls started once the
// objects exist that no pod starts without, and the scheduler knows what it needs. It may be run again: upstream's
// parts keep nothing in the process but metrics, which are registered once.
func (c *controllers) run(ctx context.Context, started func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rotation, err := c.rotation()
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	problems := make(chan error, 3+len(c.own))
	part := func(name string, run func(context.Context) error) {
		all.Go(func() {
			defer cancel()
			err := run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("returned without being asked to")
			}
			if err != nil {
				problems <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	synced := make(chan struct{})
	part(managerName, c.components.runControllerManager)
	part(schedulerName, func(ctx context.Context) error {
		return c.components.runScheduler(ctx, func() { close(synced) })
	})
	for _, own := range slices.Concat(c.own, []Controller{rotation}) {
		all.Go(func() {
			if err := c.keep(ctx, own); err != nil {
				problems <- fmt.Errorf("%s: %w", own.Name, err)
				cancel()
			}
		})
	}
	all.Go(func() {
		if awaitDefaults(ctx, c.client) != nil {
			return // asked to stop
		}
		select {
		case <-synced:
			started()
		case <-ctx.Done():
		}
	})
	if err := awaitEnd(ctx, &all); err != nil {
		return err
	}
	select {
	case err := <-problems:
		return err
	default:
		return nil
	}
}

// awaitEnd waits until all have ended. Once they are asked to that takes some seconds at most; who asked may give up
// earlier.
func awaitEnd(ctx context.Context, all *sync.WaitGroup) error {
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-ended:
		return nil
	case <-time.After(controllersLast):
		return fmt.Errorf("%w: %s", errControllersStuck, controllersLast)
	}
}

// keep runs a controller of Cairn's own until ctx ends. An error is its wish that another server leads, or that all begin
// anew.
func (c *controllers) keep(ctx context.Context, own Controller) error {
	pause := controllerFirstPause
	for ctx.Err() == nil {
		begin := time.Now()
		err := own.Run(ctx, c.client)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrHandOver) || errors.Is(err, errBeginAnew) {
			return err
		}
		if time.Since(begin) > controllerLastPause {
			pause = controllerFirstPause
		}
		c.log.Error("controller ended, it is started again", "controller", own.Name, "error", err, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, controllerLastPause)
	}
	return nil
}
