package runner

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/pki"
)

// shortLife is the shortest life that certificates can be given.
const shortLife = 3 * time.Minute

// renewals is how many times every certificate is renewed while the sessions run.
const renewals = 3

// TestNativeCertificates gives all certificates a life of minutes, and runs watches, logs and exec sessions through their
// renewals without an error or a gap. An agent that had no power while its certificates ended comes back.
func TestNativeCertificates(t *testing.T) {
	lane.Require(t, "native")
	requireLong(t)
	const url = "https://10.88.0.51:6443"
	brief := func(s fleetSpec) fleetSpec {
		s.config = strings.TrimSuffix(s.config, "}\n") + fmt.Sprintf(", cluster: {certificate_life: %s}}\n", shortLife)
		return s
	}
	f := newFleet(t, brief(first("seal-1", "10.88.0.51")), brief(server("seal-2", "10.88.0.52", url)),
		brief(agent("clerk-1", "10.88.0.56", url)), brief(agent("clerk-2", "10.88.0.57", url)))
	f.startAll()
	ctx := within(t, 4*time.Minute)
	c := f.access(ctx, t, "seal-1")
	waitReady(ctx, t, c, "seal-1", "seal-2", "clerk-1", "clerk-2")
	if !t.Run("renewed in use", func(t *testing.T) { testRenewedInUse(t, f) }) {
		return
	}
	t.Run("ended without power", func(t *testing.T) { testEndedWithoutPower(t, f) })
}

// testRenewedInUse follows counters in pods on an agent and on a server, by exec and by logs, and watches, through either
// server, until all certificates were renewed.
func testRenewedInUse(t *testing.T, f *fleet) {
	ctx := within(t, time.Duration(renewals+1)*shortLife)
	doors := map[string]*door{"seal-1": f.door(ctx, t, "seal-1"), "seal-2": f.door(ctx, t, "seal-2")}
	for _, node := range []string{"clerk-1", "seal-2"} {
		runCounter(ctx, t, doors["seal-1"], node)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	var sessions []*session
	for _, d := range doors {
		for _, node := range []string{"clerk-1", "seal-2"} {
			sessions = append(sessions,
				follow(running, t, d, "exec of "+node, "exec", "counter-"+node, "--", "/bin/busybox", "sh", "-c", countForever),
				follow(running, t, d, "logs of "+node, "logs", "-f", "counter-"+node))
		}
		sessions = append(sessions, watchCounter(running, t, d))
	}
	before := f.instances(ctx, t)
	seen := leafHistory{}
	begin := time.Now()
	err := poll(ctx, fmt.Sprintf("all certificates are renewed %d times", renewals), func(context.Context) (bool, error) {
		seen.look(t, f, "seal-1", "seal-2", "clerk-1", "clerk-2")
		behind := seen.fewer(renewals + 1)
		return len(behind) == 0, fmt.Errorf("not yet: %v", behind)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("all of these were renewed at least %d times within %.0f s: %s", renewals, time.Since(begin).Seconds(), seen)
	pause(ctx, 10*time.Second) // what the renewal broke would tell by now
	for _, s := range sessions {
		s.check(t)
	}
	stop()
	for _, s := range sessions {
		<-s.done
	}
	checkInstances(t, before, f.instances(ctx, t))
	for _, d := range doors {
		if err := d.reach(ctx, "counter-clerk-1"); err != nil {
			t.Errorf("a new session: %v", err)
		}
	}
}

// testEndedWithoutPower starts an agent whose certificates have ended.
func testEndedWithoutPower(t *testing.T, f *fleet) {
	ctx := within(t, shortLife+3*time.Minute)
	f.kill("clerk-2")
	var end time.Time
	for _, path := range leafFiles(f, "clerk-2") {
		c, err := readLeaf(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.NotAfter.After(end) {
			end = c.NotAfter
		}
	}
	pause(ctx, time.Until(end)+5*time.Second)
	begin := time.Now()
	f.mustStart(f.specs["clerk-2"])
	d := f.door(ctx, t, "seal-1")
	waitFresh(ctx, t, d.Cluster, begin.Truncate(time.Second), "clerk-2")
	t.Logf("an agent whose certificates ended %.0f s before it got power is Ready after %.1f s", begin.Sub(end).Seconds(), time.Since(begin).Seconds())
}

// leafFiles are the certificates of a machine that have to be renewed in time. That by which the apiserver asks kubelets,
// and that by which it asks extensions, live as long as their authorities.
func leafFiles(f *fleet, machine string) []string {
	dir := filepath.Join(f.dir, machine, "var/lib/cairn/server/tls")
	names := []string{pki.APIServer, pki.KubeletClient, pki.KubeletServer, pki.Store, pki.ControllerManager, pki.Scheduler, pki.Admin}
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Join(f.dir, machine, "var/lib/cairn/node/tls")
		names = []string{pki.KubeletClient, pki.KubeletServer}
	}
	for i := range names {
		names[i] = pki.PairFile(dir, names[i])
	}
	return names
}

func readLeaf(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// leafHistory has the serial numbers that certificates had, by machine and name.
type leafHistory map[string][]string

// look notes the certificates of now, which must be valid.
func (h leafHistory) look(t *testing.T, f *fleet, machines ...string) {
	t.Helper()
	for _, machine := range machines {
		for _, path := range leafFiles(f, machine) {
			c, err := readLeaf(path)
			if err != nil {
				t.Error(err)
				continue
			}
			if !time.Now().Before(c.NotAfter) {
				t.Errorf("%s of %s ended at %v", filepath.Base(path), machine, c.NotAfter)
			}
			name, serial := machine+"/"+strings.TrimSuffix(filepath.Base(path), ".pem"), c.SerialNumber.String()
			if !slices.Contains(h[name], serial) {
				h[name] = append(h[name], serial)
			}
		}
	}
}

// fewer lists what had fewer than n certificates.
func (h leafHistory) fewer(n int) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if len(h[name]) < n {
			all = append(all, fmt.Sprintf("%s %d", name, len(h[name])-1))
		}
	}
	return all
}

func (h leafHistory) String() string { return strings.Join(h.fewer(1<<30), ", ") }

// countForever prints a number each second.
const countForever = "i=0; while :; do i=$((i+1)); echo $i; /bin/busybox sleep 1; done"

// runCounter starts a pod on a node that prints a number each second, and waits until it runs.
func runCounter(ctx context.Context, t *testing.T, d *door, node string) {
	t.Helper()
	none := int64(1)
	pods := d.CoreV1().Pods(namespace)
	pod, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "counter-" + node}, Spec: corev1.PodSpec{
		NodeName: node, TerminationGracePeriodSeconds: &none,
		Containers: []corev1.Container{{
			Name: "counter", Image: builtImage(t).HelloTag, ImagePullPolicy: corev1.PullNever,
			Command: []string{"/bin/busybox", "sh", "-c", countForever},
		}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = poll(ctx, pod.Name+" runs", func(ctx context.Context) (bool, error) {
		now, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return podReady(now), errors.New(podStates([]corev1.Pod{*now}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// gap is the longest silence of a counter that prints each second: the machines share two processors.
const gap = 10 * time.Second

// session reads numbers that grow by one.
type session struct {
	what string
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	count   int           // numbers so far
	last    time.Time     // when the last one came
	longest time.Duration // between two
	err     error
}

func newSession(what string) *session {
	return &session{what: what, done: make(chan struct{}), last: time.Now()}
}

// number takes the next one.
func (s *session) number(n, before int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.count > 0 {
		s.longest = max(s.longest, now.Sub(s.last))
		if n != before+1 && s.err == nil {
			s.err = fmt.Errorf("%d follows on %d", n, before)
		}
	}
	s.count++
	s.last = now
}

func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// check expects a session that goes on and lacked nothing.
func (s *session) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	longest := max(s.longest, time.Since(s.last))
	t.Logf("%s: %d numbers, at most %.1f s apart, %v", s.what, s.count, longest.Seconds(), s.err)
	if s.err != nil || longest > gap || s.count == 0 {
		t.Errorf("%s: %d numbers, at most %v apart, %v; want one each second and no error", s.what, s.count, longest, s.err)
	}
}

// follow starts kubectl, whose output are numbers, and reads it until ctx ends.
func follow(ctx context.Context, t *testing.T, d *door, what string, args ...string) *session {
	t.Helper()
	s := newSession(what + " through " + d.name)
	cmd := d.kubectl(ctx, args...)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		lines, before := bufio.NewScanner(out), 0
		for lines.Scan() {
			n, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
			if err != nil {
				s.fail(err)
				continue
			}
			s.number(n, before)
			before = n
		}
		err := cmd.Wait()
		if ctx.Err() == nil {
			s.fail(fmt.Errorf("it ended: %w: %s", errors.Join(lines.Err(), err), problems.String()))
		}
	}()
	return s
}

// watchCounter watches an object through a server, and writes it each second through the same.
func watchCounter(ctx context.Context, t *testing.T, d *door) *session {
	t.Helper()
	s := newSession("watch through " + d.name)
	objects := d.CoreV1().ConfigMaps(namespace)
	made, err := objects.Create(ctx, seriesMap(d.name, "0"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := objects.Watch(ctx, metav1.ListOptions{ResourceVersion: made.ResourceVersion, FieldSelector: "metadata.name=" + made.Name})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for n := 1; ctx.Err() == nil; n++ {
			if _, err := objects.Update(ctx, seriesMap(d.name, strconv.Itoa(n)), metav1.UpdateOptions{}); err != nil && ctx.Err() == nil {
				s.fail(fmt.Errorf("write: %w", err))
			}
			pause(ctx, time.Second)
		}
	}()
	go func() {
		defer close(s.done)
		defer w.Stop()
		before := 0
		for e := range w.ResultChan() {
			m, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				s.fail(fmt.Errorf("%v: %+v", e.Type, e.Object))
				continue
			}
			n, err := strconv.Atoi(m.Data["number"])
			if err != nil {
				s.fail(err)
				continue
			}
			s.number(n, before)
			before = n
		}
		if ctx.Err() == nil {
			s.fail(errors.New("it ended"))
		}
	}()
	return s
}
