package control

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/util/errors"
	genericapiserver "k8s.io/apiserver/pkg/server"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// runAPIServer is upstream's Run with a handler in front of the chain of all servers: outside of authentication, of
// the limits of time and number, and of what gathers requests when the apiserver stops.
func (s *components) runAPIServer(ctx context.Context, front func(http.Handler) http.Handler) error {
	options, err := s.apiserver.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := options.Validate(); len(errs) > 0 {
		return fmt.Errorf("options: %w", errors.NewAggregate(errs))
	}
	config, err := apiserver.NewConfig(options)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	// The aggregator's chain is the outermost: what it does not know goes on to the apiserver and its extensions.
	aggregator := config.Aggregator.GenericConfig
	chain := aggregator.BuildHandlerChainFunc
	aggregator.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return front(chain(api, c))
	}
	completed, err := config.Complete()
	if err != nil {
		return fmt.Errorf("complete configuration: %w", err)
	}
	server, err := apiserver.CreateServerChain(completed)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	return prepared.Run(ctx)
}
