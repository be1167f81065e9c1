package health

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cairn-os/cairn/pkg/config"
)

const (
	// maxRestarts is how often a critical pod may restart within the settle time. Once is what many do that begin before
	// their database has; a second time within so short a time is no accident.
	maxRestarts = 1
	// minWatched is the time in which restarts are counted when the settle time is shorter.
	minWatched = 30 * time.Second
	// maxPods bounds the list of a node's pods. One of 110 pods is about 1 MiB.
	maxPods = 16 << 20
	// podsTimeout leaves room for a board that starts everything at once.
	podsTimeout = 15 * time.Second
)

// systemPods are critical where the owner names none.
const systemPods = "kube-system"

// criticalPods is the check of some of the pods of this node. Those that are going away or have ended do not count:
// whoever made them makes others in their place. There need be none of them, unless there were before the upgrade: a
// machine that was drained gets no pods until it is let in again, and what was moved away may stay there. Of the pods of
// kube-system, where nobody named any, those without an owner are left out, and those of Jobs: nobody replaces the former,
// and the latter run to their end. Static pods count, for their owner is the Node.
type criticalPods struct {
	opt      Options
	pods     config.CriticalPods
	standard bool // the owner named none
	watched  time.Duration
	restarts map[string][]restarts // by the pod's UID, oldest first
}

// restarts is how often a pod had restarted at some time.
type restarts struct {
	at    time.Time
	count int
}

func (o Options) pods() []*criticalPods {
	named := o.Health.CriticalPods
	standard := len(named) == 0
	if standard {
		named = []config.CriticalPods{{Namespace: systemPods}}
	}
	var all []*criticalPods
	for _, p := range named {
		all = append(all, &criticalPods{opt: o, pods: p, standard: standard, watched: max(minWatched, o.Health.Settle()), restarts: map[string][]restarts{}})
	}
	return all
}

func (c *criticalPods) look() Look {
	return Look{Name: "critical pods " + c.pods.String(), Timeout: podsTimeout, Do: c.do}
}

func (c *criticalPods) do(ctx context.Context) Finding {
	pods, f := c.list(ctx)
	if f.Text != "" {
		return f
	}
	var running map[string]bool
	if c.opt.Containers != nil {
		var err error
		if running, err = c.opt.Containers(); err != nil {
			return Finding{Text: "running containers: " + err.Error()}
		}
		if running == nil {
			running = map[string]bool{}
		}
	}
	return c.judge(pods, running, time.Now())
}

// list asks for the node's pods. The kubelet may do so only for its own node and only when it says so by this selector
// (plugin/pkg/auth/authorizer/node, AuthorizeNodeWithSelectors, on since Kubernetes 1.32). When it fails the finding says why.
func (c *criticalPods) list(ctx context.Context) ([]pod, Finding) {
	query := url.Values{"fieldSelector": {"spec.nodeName=" + c.opt.NodeName}}
	if c.pods.Selector != "" {
		query.Set("labelSelector", c.pods.Selector)
	}
	body, f := ask(ctx, c.opt.API, "/api/v1/namespaces/"+c.pods.Namespace+"/pods", query)
	if body == nil {
		return nil, f
	}
	defer body.Close()
	pods, err := parsePods(body)
	if err != nil {
		return nil, Finding{Text: "the list of pods: " + cause(ctx, err), Remote: true}
	}
	return c.counted(pods), Finding{}
}

// counted are the pods that the check is about.
func (c *criticalPods) counted(pods []pod) []pod {
	pods = slices.DeleteFunc(pods, func(p pod) bool {
		ended := p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed"
		return ended || p.Metadata.DeletionTimestamp != "" || p.Spec.NodeName != c.opt.NodeName || c.standard && !p.replaced()
	})
	slices.SortFunc(pods, func(a, b pod) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	return pods
}

// judge wants all of the pods Ready, with containers that run here and have not restarted too often.
func (c *criticalPods) judge(pods []pod, running map[string]bool, now time.Time) Finding {
	var bad []string
	for _, p := range pods {
		often := c.count(p, now)
		switch why := p.unready(); {
		case why != "":
			bad = append(bad, p.Metadata.Name+": "+why)
		case running != nil && p.stale(running):
			bad = append(bad, p.Metadata.Name+": its status is of an earlier boot")
		case often > maxRestarts:
			bad = append(bad, fmt.Sprintf("%s: restarted %d times within %s", p.Metadata.Name, often, c.watched))
		}
	}
	c.forget(pods)
	before := c.opt.Before[c.pods.String()]
	switch {
	case len(bad) > 0:
		return Finding{Text: named(bad)}
	case len(pods) == 0 && before > 0 && !c.standard:
		return Finding{Text: fmt.Sprintf("none on this machine; there were %d before the upgrade", before)}
	case len(pods) == 0:
		return Finding{OK: true, Text: "none on this machine"}
	case len(pods) == 1:
		return Finding{OK: true, Text: pods[0].Metadata.Name + " is Ready"}
	}
	return Finding{OK: true, Text: fmt.Sprintf("all %d are Ready", len(pods))}
}

// count notes how often the pod has restarted, and returns how often it did while it was watched, and at most for so long.
func (c *criticalPods) count(p pod, now time.Time) int {
	uid, n := p.Metadata.UID, p.restarts()
	notes := append(c.restarts[uid], restarts{now, n})
	// The newest one that is too old still says what the count was when the time began.
	for len(notes) > 1 && now.Sub(notes[1].at) >= c.watched {
		notes = notes[1:]
	}
	c.restarts[uid] = notes
	return n - notes[0].count
}

// forget drops what is known of pods that are gone.
func (c *criticalPods) forget(pods []pod) {
	for uid := range c.restarts {
		if !slices.ContainsFunc(pods, func(p pod) bool { return p.Metadata.UID == uid }) {
			delete(c.restarts, uid)
		}
	}
}

// Census counts, for each of the owner's critical pods, how many are on this machine, by their names: for Options.Before
// of the Judge that will decide whether an upgrade may stay. Its time is after the machine was drained and before it restarts.
func (j *Judge) Census(ctx context.Context) (map[string]int, error) {
	census := map[string]int{}
	if j.opt.API == nil {
		return census, nil
	}
	for _, c := range j.opt.pods() {
		if c.standard {
			break
		}
		within, cancel := context.WithTimeout(ctx, podsTimeout)
		pods, f := c.list(within)
		cancel()
		if f.Text != "" {
			return nil, fmt.Errorf("count critical pods %s: %s", c.pods, f.Text)
		}
		census[c.pods.String()] = len(pods)
	}
	return census, nil
}

// pod is the part of v1.Pod that matters here.
type pod struct {
	Metadata struct {
		Name              string `json:"name"`
		UID               string `json:"uid"`
		DeletionTimestamp string `json:"deletionTimestamp"`
		OwnerReferences   []struct {
			Kind string `json:"kind"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		Reason     string `json:"reason"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"conditions"`
		InitContainers []container `json:"initContainerStatuses"`
		Containers     []container `json:"containerStatuses"`
	} `json:"status"`
}

// container is the part of v1.ContainerStatus that matters here.
type container struct {
	Name         string `json:"name"`
	ContainerID  string `json:"containerID"` // containerd://<64 hexadecimal digits>
	RestartCount int    `json:"restartCount"`
	State        state  `json:"state"`
	LastState    state  `json:"lastState"`
}

// state has one of the three.
type state struct {
	Waiting *struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"waiting"`
	Running    *struct{} `json:"running"`
	Terminated *struct {
		Reason   string `json:"reason"`
		ExitCode int    `json:"exitCode"`
	} `json:"terminated"`
}

// parsePods reads a v1.PodList.
func parsePods(body io.Reader) ([]pod, error) {
	limited := &io.LimitedReader{R: body, N: maxPods}
	var list struct {
		Kind  string `json:"kind"`
		Items []pod  `json:"items"`
	}
	if err := json.NewDecoder(limited).Decode(&list); err != nil {
		if limited.N <= 0 {
			return nil, fmt.Errorf("is larger than %d bytes", maxPods)
		}
		return nil, fmt.Errorf("is not readable: %w", err)
	}
	if list.Kind != "PodList" {
		return nil, errors.New("is none: something else answers at the API server's address")
	}
	return list.Items, nil
}

// replaced says whether somebody makes another one when the pod is gone.
func (p pod) replaced() bool {
	for _, o := range p.Metadata.OwnerReferences {
		if o.Kind != "Job" {
			return true
		}
	}
	return false
}

func (p pod) restarts() int {
	n := 0
	for _, c := range slices.Concat(p.Status.InitContainers, p.Status.Containers) {
		n += c.RestartCount
	}
	return n
}

// stale says whether a container that is said to run does not: the API server keeps what the kubelet said before a power cut.
func (p pod) stale(running map[string]bool) bool {
	return slices.ContainsFunc(p.Status.Containers, func(c container) bool {
		_, id, _ := strings.Cut(c.ContainerID, "://")
		return c.State.Running != nil && !running[id]
	})
}

// unready says why the pod is not Ready, "" when it is.
func (p pod) unready() string {
	message := ""
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			if c.Status == "True" {
				return ""
			}
			message = cmp.Or(c.Message, c.Reason)
		}
	}
	ordinary := ""
	for _, c := range slices.Concat(p.Status.InitContainers, p.Status.Containers) {
		why, trouble := c.waits()
		if trouble {
			return why
		}
		ordinary = cmp.Or(ordinary, why)
	}
	return cmp.Or(ordinary, p.Status.Reason, message, p.Status.Phase, "no status yet")
}

// waits says why the container does not run, and whether that is more than a matter of course.
func (c container) waits() (why string, trouble bool) {
	switch w, t := c.State.Waiting, c.State.Terminated; {
	case w != nil && (w.Reason == "PodInitializing" || w.Reason == "ContainerCreating"):
		return w.Reason, false
	case w != nil && w.Reason == "CrashLoopBackOff":
		// Its message holds a time that changes.
		why = w.Reason
		if last := c.LastState.Terminated; last != nil {
			why += fmt.Sprintf(", the last time with exit code %d", last.ExitCode)
		}
		return why, true
	case w != nil:
		return shorten(strings.TrimSuffix(w.Reason+": "+w.Message, ": "), MaxText/maxNamed), true
	case t != nil && t.ExitCode != 0:
		return fmt.Sprintf("%s, exit code %d", cmp.Or(t.Reason, "ended"), t.ExitCode), true
	}
	return "", false
}
