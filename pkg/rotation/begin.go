package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/nodeevent"
	"github.com/cairn-os/cairn/pkg/pki"
)

// ErrRefused says that no rotation can begin now. The error's text says why and what to do.
var ErrRefused = errors.New("the authorities cannot be replaced now")

// BeginOptions say what is to be replaced, and by whom.
type BeginOptions struct {
	Client kubernetes.Interface // with an administrator's rights
	PKI    pki.Options          // of the server that was told to
	By     string               // its name
	// Present tells why a server or a witness cannot take part at this moment, or nil. Several are asked at once.
	Present func(context.Context, join.NodeRecord) error
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Check returns an error that is ErrRefused when no rotation can begin at this moment: another one is under way or has just
// ended, or a server or a witness is not there and would be waited for.
func Check(ctx context.Context, o BeginOptions) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	s, err := get(ctx, o.Client)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case s != nil:
		return underWay(s)
	}
	if err := o.settled(); err != nil {
		return err
	}
	records, err := join.ListNodes(ctx, o.Client)
	if err != nil {
		return err
	}
	absent := make(chan error, len(records))
	asked := 0
	for _, r := range records {
		if r.Role != membership.Agent {
			asked++
			go func() { absent <- o.present(ctx, r) }()
		}
	}
	if asked == 0 {
		return fmt.Errorf("%w: no server is recorded yet", ErrRefused)
	}
	var problems []error
	for range asked {
		if err := <-absent; err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("%w: %w", ErrRefused, errors.Join(problems...))
	}
	return nil
}

// between is the least time from the beginning of a replacement to that of the next. Clients in Kubernetes' own parts look
// each five minutes whether the file of an authority changed, and agents whether the cluster's did; a cross certificate
// leads from one authority to the next, and not to the one after that.
const between = 6 * time.Minute

// settled refuses to begin while some may not have heard of the last replacement. When that began its authorities' names
// say.
func (o BeginOptions) settled() error {
	if _, err := os.Stat(pki.CrossFile(o.PKI.Dir, pki.ServerCA)); err != nil {
		return nil // there was none
	}
	certs, err := cert.CertsFromFile(pki.CertFile(o.PKI.Dir, pki.ServerCA))
	if err != nil {
		return fmt.Errorf("authority of servers: %w", err)
	}
	_, text, _ := strings.Cut(certs[0].Subject.CommonName, "@")
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil // not made by a replacement
	}
	if age := o.Now().Sub(time.Unix(seconds, 0)); age >= 0 && age < between {
		return fmt.Errorf("%w: they were replaced a moment ago, and some still follow; try again in %s", ErrRefused, (between - age).Round(time.Second))
	}
	return nil
}

func (o BeginOptions) present(ctx context.Context, r join.NodeRecord) error {
	err := o.Present(ctx, r)
	if err == nil {
		return nil
	}
	_, missing := o.Client.CoreV1().Nodes().Get(ctx, r.Name, metav1.GetOptions{})
	remove := removal(r.Name, !apierrors.IsNotFound(missing))
	if r.Role == membership.Witness {
		remove = "cairnctl store remove " + r.Name
	}
	return fmt.Errorf("%s %s would be waited for (%w): bring it back, or remove it with %q", r.Role, r.Name, err, remove)
}

// Begin makes successors of all authorities and the Secret, from which on the servers replace them. It checks first what
// Check does.
func Begin(ctx context.Context, o BeginOptions) (*State, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := Check(ctx, o); err != nil {
		return nil, err
	}
	all, err := pki.Successors(o.PKI)
	if err != nil {
		return nil, err
	}
	id, err := identify(all)
	if err != nil {
		return nil, err
	}
	now := o.Now().UTC().Truncate(time.Second)
	s := &State{ID: id, Stage: trust, Since: now, Begun: now, By: o.By, Successors: all}
	secret, err := s.fill(nil)
	if err != nil {
		return nil, err
	}
	_, err = o.Client.CoreV1().Secrets(join.Namespace).Create(ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("%w: another replacement began at this moment", ErrRefused)
	}
	if err != nil {
		return nil, fmt.Errorf("create secret %s: %w", join.RotationName, err)
	}
	o.Log.Warn("authorities: their replacement begins", "id", id)
	tell(ctx, o.Client, o.Log, nodeevent.Event{Node: o.By, At: now, Reason: replaced, Message: "stage trust: all servers are to trust new authorities, too"})
	return s, nil
}

func underWay(s *State) error {
	return fmt.Errorf("%w: a replacement is under way since %s, begun on %s, at the stage %s; \"cairnctl cluster status\" shows it",
		ErrRefused, s.Begun.UTC().Format(time.RFC3339), s.By, s.Stage)
}

// get reads the rotation under way, nil for none.
func get(ctx context.Context, client kubernetes.Interface) (*State, error) {
	s, err := client.CoreV1().Secrets(join.Namespace).Get(ctx, join.RotationName, metav1.GetOptions{})
	// In each stage client-go closes the connections that were made with a certificate of before, in the middle of an answer.
	for again := 0; errors.Is(err, net.ErrClosed) && again < 3; again++ {
		s, err = client.CoreV1().Secrets(join.Namespace).Get(ctx, join.RotationName, metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", join.RotationName, err)
	}
	state, err := parse(s)
	if err != nil && !errors.Is(err, errLater) {
		err = fmt.Errorf("%w; if it is damaged, \"kubectl -n %s delete secret %s\" gives the replacement up; after the stage %s do that only "+
			"when all servers sign with the same authority, see \"cairnctl certificate list\" on each", err, join.Namespace, join.RotationName, trust)
	}
	return state, err
}
