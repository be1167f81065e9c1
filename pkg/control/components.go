package control

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	manageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// components are the options of all parts, parsed before any runs: the registry of feature gates that they share is
// set once, for all of them.
type components struct {
	apiserver *apiserveroptions.ServerRunOptions
	manager   *manageroptions.KubeControllerManagerOptions
	scheduler *scheduleroptions.Options
	synced    chan struct{} // closed when the scheduler knows all objects
}

func newComponents(o Options) (*components, error) {
	s := &components{
		apiserver: apiserveroptions.NewServerRunOptions(), scheduler: scheduleroptions.NewOptions(), synced: make(chan struct{}),
	}
	var err error
	if s.manager, err = manageroptions.NewKubeControllerManagerOptions(); err != nil {
		return nil, fmt.Errorf("kube-controller-manager options: %w", err)
	}
	managerFlags := s.manager.Flags(manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases())
	for _, c := range []struct {
		name  string
		flags cliflag.NamedFlagSets
		args  []string
	}{
		{"kube-scheduler", *s.scheduler.Flags, o.schedulerArguments()},
		{"kube-controller-manager", managerFlags, o.controllerManagerArguments()},
		{"kube-apiserver", s.apiserver.Flags(), o.apiserverArguments()},
	} {
		if err := parse(c.name, c.flags, c.args); err != nil {
			return nil, err
		}
	}
	if err := s.apiserver.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // the components use deprecated APIs knowingly
	return s, nil
}

func parse(name string, sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, f := range sets.FlagSets {
		fs.AddFlagSet(f)
	}
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%s arguments: %w", name, err)
	}
	return nil
}

func (s *components) runAPIServer(ctx context.Context) error {
	completed, err := s.apiserver.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("options: %w", errors.NewAggregate(errs))
	}
	return apiserver.Run(ctx, completed)
}

func (s *components) runControllerManager(ctx context.Context) error {
	c, err := s.manager.Config(ctx, manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases())
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	return manager.Run(ctx, c.Complete())
}

func (s *components) runScheduler(ctx context.Context) error {
	c, sched, err := scheduler.Setup(ctx, s.scheduler)
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	go func() {
		if sched.WaitForHandlersSync(ctx) == nil {
			close(s.synced)
		}
	}()
	return scheduler.Run(ctx, c, sched)
}

// schedulerSynced waits until the scheduler knows all objects.
func (s *components) schedulerSynced(ctx context.Context) error {
	select {
	case <-s.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// poll is how often a condition of the own apiserver is looked at while it starts.
const poll = 100 * time.Millisecond
