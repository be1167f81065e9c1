package rotation

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/pki"
)

// settle is how long a stage is held after everybody has come as far. Clients and servers of Kubernetes reread files now
// and then, each minute at the latest, and certificates of that life are looked at each pki.Interval: everybody has done so
// twice. Of a life below ten minutes it is less than the minute, for tests: a request may fail then.
func settle(life time.Duration) time.Duration { return 2*pki.Interval(life) + 10*time.Second }

// view is what the cluster says about its machines.
type view struct {
	records []join.NodeRecord
	nodes   map[string]bool // that there are, and whether they are Ready
	bundle  string          // hash of the own server-ca.crt
}

// see asks the cluster. dir has the own server's certificates.
func see(ctx context.Context, client kubernetes.Interface, dir string) (view, error) {
	v := view{nodes: make(map[string]bool)}
	var err error
	if v.bundle, err = join.BundleHash(pki.CertFile(dir, pki.ServerCA)); err != nil {
		return v, err
	}
	if v.records, err = join.ListNodes(ctx, client); err != nil {
		return v, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return v, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		v.nodes[nodes.Items[i].Name] = false
		for _, c := range nodes.Items[i].Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				v.nodes[nodes.Items[i].Name] = true
			}
		}
	}
	return v, nil
}

// waiting tells who has not come as far as the stage, and what a person can do about it. Servers come first: what agents
// and witnesses are to hold is known once all servers hold it, this one among them.
func (v view) waiting(s *State) []string {
	var servers, others []string
	for _, r := range v.records {
		switch {
		case r.Role == membership.Server:
			if !reached(r.Authorities, s) {
				servers = append(servers, v.aboutServer(r.Name, s.Stage))
			}
		case s.Stage != sign: // they have no part in the others
		case r.Authorities == v.bundle || r.Authorities == s.ID: // the new one alone: of before a snapshot was restored
		case r.Role == membership.Witness:
			others = append(others, fmt.Sprintf("witness %s has not taken over the new authorities yet; if it does not come back, "+
				"\"cairnctl store remove %s\" ends the wait some minutes later", r.Name, r.Name))
		case v.nodes[r.Name]:
			others = append(others, fmt.Sprintf("agent %s has not taken over the new authorities yet, which takes some minutes; if it lasts, "+
				"see \"cairnctl logs node\" there; \"kubectl delete node %s\" ends the wait", r.Name, r.Name))
		}
	}
	if len(servers) > 0 {
		return servers
	}
	return others
}

func (v view) aboutServer(name string, stage Stage) string {
	ready, exists := v.nodes[name]
	if ready {
		return fmt.Sprintf("server %s has not come to the stage %s yet; if it lasts, see \"cairnctl logs control\" there", name, stage)
	}
	return fmt.Sprintf("server %s is not there, and is waited for: start it; if it does not come back, remove it with %q; "+
		"a machine that joins anew must be removed first", name, removal(name, exists))
}

// removal is the command that takes a server or an agent out of the cluster. Without a Node nothing removes its record.
func removal(name string, hasNode bool) string {
	if hasNode {
		return "kubectl delete node " + name
	}
	return "kubectl -n " + join.Namespace + " delete secret " + join.NodePrefix + name
}

// reached says that the mark in a server's record is of the same rotation, and of its stage or a later one.
func reached(mark string, s *State) bool {
	id, stage, ok := strings.Cut(mark, "/")
	return ok && id == s.ID && Stage(stage).Rank() >= s.Stage.Rank()
}
