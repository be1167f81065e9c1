package control

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/configz"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	manageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// components are the options of all parts, parsed before any runs: the registry of feature gates that they share is
// set once, for all of them. The controller-manager and the scheduler make their configuration anew from them for each
// run.
type components struct {
	apiserver *apiserveroptions.ServerRunOptions
	manager   *manageroptions.KubeControllerManagerOptions
	scheduler *scheduleroptions.Options
}

func newComponents(o Options) (*components, error) {
	s := &components{apiserver: apiserveroptions.NewServerRunOptions(), scheduler: scheduleroptions.NewOptions()}
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
		{schedulerName, *s.scheduler.Flags, o.schedulerArguments()},
		{managerName, managerFlags, o.controllerManagerArguments()},
		{apiserverName, s.apiserver.Flags(), o.apiserverArguments()},
	} {
		extra, err := o.extra(c.name)
		if err != nil {
			return nil, err
		}
		flags, err := parse(c.name, c.flags, c.args)
		if err != nil {
			return nil, err
		}
		if err := flags.Parse(extra); err != nil {
			_, key := o.Arguments.of(c.name)
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	if err := s.apiserver.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("set feature gates: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // the components use deprecated APIs knowingly
	return s, nil
}

func parse(name string, sets cliflag.NamedFlagSets, args []string) (*pflag.FlagSet, error) {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, f := range sets.FlagSets {
		fs.AddFlagSet(f)
	}
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("%s arguments: %w", name, err)
	}
	return fs, nil
}

// runControllerManager may be run again after it returned. Upstream registers its configuration for the process and
// knows no end: the registration of an earlier run is taken back.
func (s *components) runControllerManager(ctx context.Context) error {
	configz.Delete(manager.ConfigzName)
	c, err := s.manager.Config(ctx, manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases())
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	return manager.Run(ctx, c.Complete())
}

// schedulerConfigz is what upstream's scheduler registers its configuration as.
const schedulerConfigz = "componentconfig"

// runScheduler may be run again after it returned. It calls synced when the scheduler knows all objects.
func (s *components) runScheduler(ctx context.Context, synced func()) error {
	configz.Delete(schedulerConfigz)
	c, sched, err := scheduler.Setup(ctx, s.scheduler)
	if err != nil {
		return fmt.Errorf("options: %w", err)
	}
	go func() {
		if sched.WaitForHandlersSync(ctx) == nil {
			synced()
		}
	}()
	err = scheduler.Run(ctx, c, sched)
	if ctx.Err() != nil {
		return nil // upstream has no end without an error
	}
	return err
}
