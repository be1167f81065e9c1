// Package nodewatch follows one Kubernetes node object by the API server's watch, with nothing but net/http: the
// machine daemon must stay free of Kubernetes' libraries (memory, and a broken client must not take it along).
package nodewatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cairn-os/cairn/pkg/status"
)

// Observation is what was seen of the node at one moment.
type Observation struct {
	Node status.Node
	// Seen is false when the API server could not be asked or has no such node: Node.Reason says which.
	Seen bool
	// BootID and Heartbeat tell whether the condition is from this boot: the object outlives a power cut.
	BootID    string
	Heartbeat time.Time
}

// Reasons of observations that are not Seen.
const (
	ReasonNoKubeconfig  = "NoKubeconfig"  // the node process has not written it yet
	ReasonUnreachable   = "Unreachable"   // the API server does not answer
	ReasonNotRegistered = "NotRegistered" // there is no node of this name
)

// Options configure Watch; all are required.
type Options struct {
	Kubeconfig string // path; it and the files it refers to are read again for every connection
	Node       string
	Update     func(Observation) // called from Watch for every event and outage
}

const (
	retryAfter   = time.Second
	watchSeconds = 300 // after which the server ends the watch and a new one shows the whole state again
	maxEvent     = 4 << 20
)

// Watch reports the node until ctx ends. Outages are reported and retried each second.
func Watch(ctx context.Context, opt Options) {
	for {
		err := watchOnce(ctx, opt)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			opt.Update(outage(opt.Node, err))
		}
		t := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func outage(name string, err error) Observation {
	n := status.Node{Name: name, Reason: ReasonUnreachable, Message: err.Error()}
	if errors.Is(err, fs.ErrNotExist) {
		n.Reason = ReasonNoKubeconfig
	}
	return Observation{Node: n}
}

// watchOnce makes one watch and returns nil when the server ended it in order. A list comes first, because a watch
// alone does not say that there is no such node.
func watchOnce(ctx context.Context, opt Options) error {
	ep, err := loadKubeconfig(opt.Kubeconfig)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: ep.tls, Proxy: nil, ResponseHeaderTimeout: 30 * time.Second}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ctx, cancel := context.WithTimeout(ctx, (watchSeconds+30)*time.Second)
	defer cancel()

	query := url.Values{"fieldSelector": {"metadata.name=" + opt.Node}}
	body, err := get(ctx, client, ep.server, query)
	if err != nil {
		return err
	}
	var list nodeList
	err = json.NewDecoder(io.LimitReader(body, maxEvent)).Decode(&list)
	body.Close()
	if err != nil {
		return fmt.Errorf("decode node list: %w", err)
	}
	if len(list.Items) == 0 {
		opt.Update(missing(opt.Node))
	}
	for _, n := range list.Items {
		opt.Update(n.observe())
	}

	query.Set("watch", "1")
	query.Set("resourceVersion", list.Metadata.ResourceVersion)
	query.Set("timeoutSeconds", strconv.Itoa(watchSeconds))
	if body, err = get(ctx, client, ep.server, query); err != nil {
		return err
	}
	defer body.Close()
	return follow(body, opt)
}

func get(ctx context.Context, client *http.Client, server *url.URL, query url.Values) (io.ReadCloser, error) {
	u := server.JoinPath("/api/v1/nodes")
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask API server: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "cairnd")
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask API server: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("ask API server: %s", res.Status)
	}
	return res.Body, nil
}

// follow reads the events of a watch until the server ends it.
func follow(body io.Reader, opt Options) error {
	limited := &io.LimitedReader{R: body, N: maxEvent}
	dec := json.NewDecoder(limited)
	for {
		limited.N = maxEvent // for each event anew
		var ev event
		err := dec.Decode(&ev)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch node: %w", err)
		}
		switch ev.Type {
		case "ADDED", "MODIFIED":
			opt.Update(ev.Object.observe())
		case "DELETED":
			opt.Update(missing(opt.Node))
		case "ERROR":
			return nil // too old a version, most likely: begin anew
		}
	}
}

func missing(name string) Observation {
	return Observation{Node: status.Node{Name: name, Reason: ReasonNotRegistered, Message: "the cluster has no node of this name yet"}}
}

type event struct {
	Type   string `json:"type"`
	Object node   `json:"object"`
}

type nodeList struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items []node `json:"items"`
}

// node is the part of v1.Node that matters here.
type node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Conditions []struct {
			Type      string    `json:"type"`
			Status    string    `json:"status"`
			Reason    string    `json:"reason"`
			Message   string    `json:"message"`
			Heartbeat time.Time `json:"lastHeartbeatTime"`
		} `json:"conditions"`
		NodeInfo struct {
			BootID         string `json:"bootID"`
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

func (n node) observe() Observation {
	o := Observation{
		Seen: true, BootID: n.Status.NodeInfo.BootID,
		Node: status.Node{Name: n.Metadata.Name, Version: n.Status.NodeInfo.KubeletVersion, Reason: "NoCondition"},
	}
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			o.Node.Ready, o.Node.Reason, o.Node.Message, o.Heartbeat = c.Status == "True", c.Reason, c.Message, c.Heartbeat
		}
	}
	return o
}
