package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/cairn-os/cairn/pkg/atomicfile"
)

// asideSuffix names a list that cannot be read, kept for whoever wonders.
const asideSuffix = ".corrupt"

// list is the file that keeps the servers' addresses between starts. It is
// replaced whole, so that a power cut leaves the old list or the new one; both
// are of servers that were there a moment ago.
type list struct {
	path string

	mu    sync.Mutex
	saved []string // what the file holds; guarded by mu
}

// content is the file's form.
type content struct {
	Servers []string `json:"servers"`
}

// load reads the file. It returns no servers when there is none. A file that
// makes no sense is set aside, and the error tells so: the node can come up by
// the servers that it joined with.
func (l *list) load() ([]string, error) {
	data, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of servers: %w", err)
	}
	servers, err := decode(data)
	if err != nil {
		err = fmt.Errorf("list of servers %s: %w (set aside as %s)", l.path, err, l.path+asideSuffix)
		return nil, errors.Join(err, os.Rename(l.path, l.path+asideSuffix))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.saved = servers
	return servers, nil
}

func decode(data []byte) ([]string, error) {
	var c content
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, err
	}
	return normalize(c.Servers)
}

// save replaces the file unless it holds these servers already: agents live on
// SD cards.
func (l *list) save(servers []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Equal(l.saved, servers) {
		return nil
	}
	data, err := json.MarshalIndent(content{Servers: servers}, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(l.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep list of servers: %w", err)
	}
	l.saved = servers
	return nil
}

// normalize sorts addresses and drops repeated ones. No address, or one
// without a host or a port, is an error.
func normalize(servers []string) ([]string, error) {
	if len(servers) == 0 {
		return nil, errors.New("no server in the list")
	}
	for _, s := range servers {
		if err := checkAddress(s); err != nil {
			return nil, err
		}
	}
	sorted := slices.Sorted(slices.Values(servers))
	return slices.Compact(sorted), nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("server %q: %w", address, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("server %q: want host:port", address)
	}
	return nil
}
