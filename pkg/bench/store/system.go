package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/cairn-os/cairn/pkg/store/admin"
	"github.com/cairn-os/cairn/pkg/store/peer"
	"github.com/cairn-os/cairn/pkg/store/peer/peertest"
)

// formLimit is how long a store may take to start, or to find a new leader.
const formLimit = time.Minute

// storeEnv is what init gives the store on a board with 1 GiB of memory. A
// machine with more has a laxer GOMEMLIMIT.
var storeEnv = []string{"MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=65536", "GOGC=30", "GOMEMLIMIT=61MiB"}

// kind is one of the two stores that are compared.
type kind interface {
	name() string
	// command is the command line of a member and what its environment has
	// besides. first says that it founds the cluster.
	command(m *member, all []*member) (argv, env []string)
	// leads says whether m leads all members, each of which votes.
	leads(ctx context.Context, m *member, all []*member) (bool, error)
}

// member is a process of a system and where it keeps what.
type member struct {
	name        string // m1, m2, ...
	dir         string // its data
	socket      string // its clients'
	admin       string // its operator's
	peer        string // host:port for other members
	client      string // host:port that etcd tells clients; nobody listens
	credentials peer.Credentials
	*process
}

// system is a store of one or several members.
type system struct {
	kind
	members []*member
	sockets string // their folder: a socket's path has at most 107 bytes
}

// newSystem prepares n members with data below dir. Nothing runs yet, but
// stop is to be called in the end.
func newSystem(k kind, n int, dir string) (*system, error) {
	ca, err := peertest.NewCA(filepath.Join(dir, "ca"))
	if err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "cairn-bench")
	if err != nil {
		return nil, err
	}
	s := &system{kind: k, sockets: sockets}
	for i := range n {
		m := &member{name: fmt.Sprintf("m%d", i+1)}
		m.dir, m.socket, m.admin = filepath.Join(dir, m.name), filepath.Join(sockets, m.name), filepath.Join(sockets, m.name+".admin")
		if err := m.identify(ca, filepath.Join(dir, "ca")); err != nil {
			return nil, errors.Join(err, os.RemoveAll(sockets))
		}
		s.members = append(s.members, m)
	}
	return s, nil
}

// identify gives m a certificate, below dir, and its addresses.
func (m *member) identify(ca *peertest.CA, dir string) (err error) {
	loopback := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} } // etcd looks for it
	if m.credentials, err = ca.Issue(dir, m.name, loopback); err != nil {
		return err
	}
	if m.peer, err = freeAddress(); err != nil {
		return err
	}
	m.client, err = freeAddress()
	return err
}

// freeAddress is an address on which nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// start starts all members and waits until they serve and vote. They are
// killed when ctx ends.
func (s *system) start(ctx context.Context) error {
	for _, m := range s.members {
		if err := s.startMember(ctx, m); err != nil {
			return err
		}
	}
	_, err := s.leader(ctx)
	return err
}

func (s *system) startMember(ctx context.Context, m *member) error {
	argv, env := s.command(m, s.members)
	p, err := startProcess(ctx, argv, env)
	m.process = p
	return err
}

// leader waits until there is one, with every member voting.
func (s *system) leader(ctx context.Context) (*member, error) {
	ctx, cancel := context.WithTimeout(ctx, formLimit)
	defer cancel()
	var last error
	for {
		for _, m := range s.members {
			if err := m.failure(); err != nil {
				return nil, err
			}
			asking, cancel := context.WithTimeout(ctx, 2*time.Second)
			leads, err := s.leads(asking, m, s.members)
			cancel()
			if leads && err == nil {
				return m, nil
			}
			last = errors.Join(err, context.Cause(ctx))
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("%s: wait for a leader of %d: %w", s.name(), len(s.members), last)
		}
	}
}

// stop ends all members in order and removes their sockets.
func (s *system) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, formLimit)
	defer cancel()
	var all []error
	for _, m := range s.members {
		if m.process != nil {
			all = append(all, m.process.stop(ctx))
		}
	}
	return errors.Join(append(all, os.RemoveAll(s.sockets))...)
}

// connect opens a client of a member.
func (m *member) connect() (*clientv3.Client, error) { return connect(m.socket) }

func connect(socket string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + socket}, DialTimeout: 20 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second, // as the apiserver
		MaxCallSendMsgSize: 16 << 20,
	})
}

// cairn is the store of this project.
type cairn struct{ program string }

func (cairn) name() string { return "cairn" }

func (c cairn) command(m *member, all []*member) (argv, env []string) {
	argv = []string{c.program, "--dir", m.dir, "--socket", m.socket, "--admin-socket", m.admin, "--name", m.name}
	if len(all) > 1 {
		argv = append(argv, "--listen", m.peer, "--advertise", m.peer,
			"--ca", m.credentials.CA, "--cert", m.credentials.Certificate, "--key", m.credentials.Key)
	}
	if m != all[0] {
		argv = append(argv, "--join", all[0].peer)
	}
	return argv, storeEnv
}

func (cairn) leads(ctx context.Context, m *member, all []*member) (bool, error) {
	c := admin.Open(m.admin)
	defer c.Close()
	status, err := c.Status(ctx)
	if err != nil || status.Phase != "leader" {
		return false, err
	}
	voters := 0
	for _, other := range status.Members {
		if other.Role == "voter" && other.Online {
			voters++
		}
	}
	if voters < len(all) {
		return false, fmt.Errorf("%d of %d members vote: %s", voters, len(all), status.Message)
	}
	return true, nil
}

// etcd is the peer, with the flags that kubeadm gives it, but for TLS with
// clients.
type etcd struct{ program string }

func (etcd) name() string { return "etcd" }

func (e etcd) command(m *member, all []*member) (argv, env []string) {
	var cluster []string
	for _, other := range all {
		cluster = append(cluster, other.name+"=https://"+other.peer)
	}
	return []string{
		e.program, "--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", "unix://" + m.socket, "--advertise-client-urls", "http://" + m.client,
		"--listen-peer-urls", "https://" + m.peer, "--initial-advertise-peer-urls", "https://" + m.peer,
		"--initial-cluster", strings.Join(cluster, ","),
		"--peer-trusted-ca-file", m.credentials.CA, "--peer-cert-file", m.credentials.Certificate,
		"--peer-key-file", m.credentials.Key, "--peer-client-cert-auth",
		"--snapshot-count", "10000", "--watch-progress-notify-interval", "5s",
		"--feature-gates", "InitialCorruptCheck=true",
	}, nil
}

func (etcd) leads(ctx context.Context, m *member, all []*member) (bool, error) {
	c, err := m.connect()
	if err != nil {
		return false, err
	}
	defer c.Close()
	list, err := c.MemberList(ctx)
	if err != nil {
		return false, err
	}
	if len(list.Members) < len(all) {
		return false, fmt.Errorf("%d of %d members", len(list.Members), len(all))
	}
	status, err := c.Status(ctx, "unix://"+m.socket)
	if err != nil {
		return false, err
	}
	return status.Leader == status.Header.MemberId && !status.IsLearner, nil
}
