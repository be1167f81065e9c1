package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"
)

const (
	// etcdTimeout bounds one attempt to read from one member.
	etcdTimeout = 5 * time.Second
	// Pauses between attempts double from the first to the last; what is said
	// twice in a row is logged again after etcdRepeat.
	etcdFirstPause, etcdLastPause = time.Second, 30 * time.Second
	etcdRepeat                    = 5 * time.Minute
)

// Etcd is a cluster that somebody else runs, in the place of the machine's own store.
type Etcd struct {
	Servers  []string // URLs of its members
	CAFile   string   // PEM; empty: the system's authorities
	CertFile string   // PEM; with KeyFile, the machine's certificate for the cluster
	KeyFile  string
}

// arguments are the apiserver's for the cluster.
func (e Etcd) arguments() []string {
	var args []string
	for _, f := range []struct{ flag, file string }{{"cafile", e.CAFile}, {"certfile", e.CertFile}, {"keyfile", e.KeyFile}} {
		if f.file != "" {
			args = append(args, "--etcd-"+f.flag+"="+f.file)
		}
	}
	return args
}

// await returns once a member of the cluster answers. The apiserver would end after a minute without one, and say little
// about the reason; so the reason is told here, by the log and by say, until the cluster is there or ctx ends.
func (e Etcd) await(ctx context.Context, log *slog.Logger, say func(string)) error {
	for _, server := range e.Servers {
		if strings.HasPrefix(server, "http://") && !loopback(server) {
			log.Warn("the connection to etcd is unencrypted, secrets included; use https://", "endpoint", server)
		}
	}
	pause, said, at := etcdFirstPause, "", time.Time{}
	for {
		err := e.probe(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if message := err.Error(); message != said || time.Since(at) > etcdRepeat {
			log.Error("waiting for the datastore", "error", message)
			say("waiting for the datastore: " + message)
			said, at = message, time.Now()
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause = min(2*pause, etcdLastPause)
	}
}

func loopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// probe reads a key through one member after the other until one answers, and returns what is wrong with each.
func (e Etcd) probe(ctx context.Context) error {
	config, err := e.tls()
	if err != nil {
		return err
	}
	var problems []string
	for _, server := range e.Servers {
		ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
		err := probeMember(ctx, server, config)
		cancel()
		if err == nil {
			return nil
		}
		problems = append(problems, fmt.Sprintf("etcd at %s: %v", server, err))
	}
	return errors.New(strings.Join(problems, "; "))
}

func (e Etcd) tls() (*tls.Config, error) {
	config := &tls.Config{}
	if e.CAFile != "" {
		pem, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cairn.datastore.ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cairn.datastore.ca_file: %s holds no certificate in PEM", e.CAFile)
		}
	}
	if e.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cairn.datastore.cert_file and key_file: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// probeMember reads a key, which takes a quorum. It connects by itself first: etcd's client hides why a connection fails.
func probeMember(ctx context.Context, server string, config *tls.Config) error {
	u, err := url.Parse(server)
	if err != nil {
		return err
	}
	if err := dialMember(ctx, u, config); err != nil {
		return err
	}
	options := clientv3.Config{Endpoints: []string{server}, Logger: zap.NewNop()}
	if u.Scheme == "https" {
		options.TLS = config
	}
	c, err := clientv3.New(options)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Get(ctx, "/registry/health")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return fmt.Errorf("the cluster refuses this machine: %s; its certificate must name a user who may read and write below /registry/", status.Convert(err).Message())
	case errors.Is(err, rpctypes.ErrNoLeader), ctx.Err() != nil:
		return fmt.Errorf("no answer within %s; see whether the cluster has a quorum (etcdctl endpoint health)", etcdTimeout)
	}
	return errors.New(status.Convert(err).Message())
}

// dialMember connects as the client would, and says why that fails.
func dialMember(ctx context.Context, u *url.URL, config *tls.Config) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	var name *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &name):
		return fmt.Errorf("the name %s cannot be resolved; check the endpoint and this machine's name servers", name.Name)
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %s; check the address and that no firewall is in between", etcdTimeout)
	case errors.As(err, &op):
		return fmt.Errorf("not reachable: %w; check that it runs and that no firewall is in between", op.Err)
	case err != nil:
		return err
	}
	defer conn.Close() // nothing was sent
	if u.Scheme != "https" {
		return nil
	}
	config = config.Clone()
	config.ServerName = u.Hostname()
	config.NextProtos = []string{"h2"}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w; check ca_file, that the endpoint's name is in the server's certificate, and that the server speaks TLS", err)
	}
	// A server that wants a certificate says so after the handshake; one that is content sends its settings.
	deadline, _ := ctx.Deadline()
	if err := secure.SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := secure.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("TLS: %w; check cert_file and key_file", err)
	}
	return nil
}
