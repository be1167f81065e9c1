package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
	"github.com/cairn-os/cairn/pkg/store/storetest/etcdtest"
)

// etcdEnv makes the test binary an etcd of this configuration.
const etcdEnv = "CAIRN_TEST_ETCD"

type etcdConfig struct {
	Name, Dir, Socket, Peer, Cluster string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(etcdEnv); text != "" {
		if err := etcd(text); err != nil {
			fmt.Fprintln(os.Stderr, "etcd:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if ended, code, err := nodes.Contain(); ended || err != nil {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	var err error
	if scratch, err = os.MkdirTemp("", "cairn-chaos-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// scratch is a directory for what all tests share.
var scratch string

func etcd(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var c etcdConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	e, err := startEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case <-e.Server.StopNotify():
		return fmt.Errorf("the server stopped")
	case err := <-e.Err():
		return err
	}
}

func startEtcd(c etcdConfig) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = c.Name, c.Dir, "warn"
	socket := url.URL{Scheme: "unix", Path: c.Socket}
	peer, err := url.Parse(c.Peer)
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls = []url.URL{socket}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "192.0.2.1:1"}} // must look like a host; nobody asks
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = c.Cluster
	return embed.StartEtcd(cfg)
}

// etcdTarget is the reference: what it does, the checker must accept.
type etcdTarget struct{}

func (etcdTarget) Program(n *nodes.Node, all []*nodes.Node) (argv, env []string, err error) {
	c := etcdConfig{Name: fmt.Sprintf("node%d", n.Index), Dir: filepath.Join(n.Dir, "etcd"), Socket: Socket(n), Peer: peerURL(n)}
	for _, other := range all {
		c.Cluster += fmt.Sprintf("node%d=%s,", other.Index, peerURL(other))
	}
	c.Cluster = c.Cluster[:len(c.Cluster)-1]
	text, err := json.Marshal(c)
	return []string{os.Args[0]}, []string{etcdEnv + "=" + string(text)}, err
}

func peerURL(n *nodes.Node) string { return fmt.Sprintf("http://%s:2380", n.Address) }

func (etcdTarget) Status(ctx context.Context, n *nodes.Node) (Status, error) {
	c, err := dial(Socket(n))
	if err != nil {
		return Status{}, err
	}
	defer c.Close()
	s, err := c.Status(ctx, "unix://"+Socket(n))
	if err != nil {
		return Status{}, err
	}
	return Status{Leads: s.Leader == s.Header.MemberId, Term: s.RaftTerm, Voters: 3}, nil
}

// loneEtcd is one etcd in this process, for tests without root.
func loneEtcd(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "sock")
	etcdtest.Start(t, filepath.Join(dir, "data"), func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	})
	return socket
}
