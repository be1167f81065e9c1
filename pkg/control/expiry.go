package control

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/cairn-os/cairn/pkg/nodeevent"
	"github.com/cairn-os/cairn/pkg/pki"
)

// expiryRepeat is how often the same certificate is warned about.
const expiryRepeat = time.Hour

// expiry tells when the server's certificates end: always as a metric of the apiserver, and as an event of the own node
// when a certificate should have been renewed long ago.
type expiry struct {
	node   string
	dir    string
	life   time.Duration // of leaves; what begins a day early does not show it
	client kubernetes.Interface
	log    *slog.Logger
	now    func() time.Time
	ends   *metrics.GaugeVec
	told   map[string]time.Time
}

func newExpiry(o Options, client kubernetes.Interface, log *slog.Logger) *expiry {
	e := &expiry{
		node: o.Node, dir: o.tls(), life: o.Life, client: client, log: log, now: time.Now, told: make(map[string]time.Time),
		ends: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Name: "cairn_certificate_expiry_seconds", Help: "When the certificate of that file ends, in seconds since 1970.",
			StabilityLevel: metrics.ALPHA,
		}, []string{"name"}),
	}
	if e.life <= 0 {
		e.life = 365 * 24 * time.Hour
	}
	if err := legacyregistry.Register(e.ends); err != nil {
		log.Warn("no metric of certificates", "error", err) // another control plane in the process has it
	}
	return e
}

// look reads the certificates and tells about them.
func (e *expiry) look(ctx context.Context) {
	all, err := pki.Expiries(e.dir)
	if err != nil {
		e.log.Error("certificates not read", "error", err)
	}
	e.ends.Reset()
	for _, c := range all {
		e.ends.WithLabelValues(c.Name).Set(float64(c.NotAfter.Unix()))
		if !e.late(c) || e.now().Sub(e.told[c.Name]) < expiryRepeat {
			continue
		}
		e.told[c.Name] = e.now()
		if err := e.warn(ctx, c); err != nil {
			e.log.Error("certificate expires", "name", c.Name, "expires", c.NotAfter, "error", err)
		}
	}
}

// late says that less than a tenth of the certificate's life is left. Leaves are renewed when a third is.
func (e *expiry) late(c pki.Expiry) bool {
	life := e.life
	if c.Authority {
		life = c.NotAfter.Sub(c.NotBefore)
	}
	return c.NotAfter.Sub(e.now()) < life/10
}

func (e *expiry) warn(ctx context.Context, c pki.Expiry) error {
	left := c.NotAfter.Sub(e.now()).Round(time.Minute)
	text := fmt.Sprintf("certificate %s of this server expires at %s, in %s, and was not renewed; see the log of control", c.Name, c.NotAfter.UTC().Format(time.RFC3339), left)
	switch {
	case c.Authority:
		text = fmt.Sprintf("the authority %s expires at %s, in %s; \"cairnctl certificate rotate\" replaces it", c.Name, c.NotAfter.UTC().Format(time.RFC3339), left)
	case left <= 0:
		text = fmt.Sprintf("certificate %s of this server expired at %s and was not renewed; see the log of control", c.Name, c.NotAfter.UTC().Format(time.RFC3339))
	}
	e.log.Warn("certificate expires", "name", c.Name, "expires", c.NotAfter)
	return nodeevent.Create(ctx, e.client, nodeevent.Event{Node: e.node, At: e.now(), Warning: true, Reason: "CertificateExpiring", Message: text})
}
