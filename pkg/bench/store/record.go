package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

// work is what the recorded machine is given to do, a line of shell each. The
// recording goes on for calm after each.
var work = []string{
	"kubectl scale deployment hello --replicas=4",
	"kubectl rollout restart deployment hello",
	"kubectl create configmap settings --from-literal=mode=busy --from-literal=greeting='Good morning, customers'",
	"kubectl create secret generic password --from-literal=word=$(cat /proc/sys/kernel/random/uuid)",
	"kubectl label node --all shop/aisle=4",
	"kubectl delete pod --wait=false $(kubectl get pod --output name | head -n 1 | cut -d/ -f2)",
	"kubectl rollout restart deployment hello",
	"kubectl create deployment other --image=cairn.local/hello:1 --replicas=2",
	"kubectl delete configmap settings",
	"kubectl scale deployment hello --replicas=1",
	"kubectl delete deployment other",
}

const calm = 15 * time.Second

// Record makes a recording of the apiserver of a machine that is booted from
// built, with its files below dir, and writes it to path. It takes five
// minutes: the apiserver starts anew, pods are started, restarted and deleted.
func Record(ctx context.Context, built *image.Output, dir, path string) (err error) {
	step := progress.FromContext(ctx).Start("record: an apiserver's requests")
	defer step.Done(&err)
	step.Update("boot")
	m, err := startMachine(ctx, built, "recorded", netip.MustParsePrefix("10.88.0.21/24"), filepath.Join(dir, "record"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.setAside(); err != nil {
		return err
	}
	l, err := net.Listen("unix", m.socket)
	if err != nil {
		return err
	}
	r, began := newRecorder(), time.Now()
	t, err := startTap(l, "unix://"+m.own, r.observe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := m.restart(ctx, "control"); err != nil {
		return err
	}
	if err := m.DeployHello(ctx, built.HelloTag); err != nil {
		return err
	}
	if _, err := m.WaitPod(ctx, "hello"); err != nil {
		return err
	}
	for _, line := range work {
		step.Update(line)
		if _, err := m.Run(ctx, line); err != nil {
			return err
		}
		if err := pause(ctx, calm); err != nil {
			return err
		}
	}
	rec, err := m.finish(ctx, r)
	if err != nil {
		return err
	}
	rec.Seconds, rec.Connections = time.Since(began).Seconds(), int(t.connections.Load())
	data, err := rec.encode()
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// finish reads what is live in the machine's store and takes the machine's
// traces out of the recording.
func (m *machine) finish(ctx context.Context, r *recorder) (*Recording, error) {
	version, err := m.Discovery().ServerVersion()
	if err != nil {
		return nil, err
	}
	c, err := connect(m.own)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	live, err := c.Get(ctx, registry, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	rec, err := r.finish(live.Kvs)
	if err != nil {
		return nil, err
	}
	traces, err := tracesHere()
	if err != nil {
		return nil, err
	}
	rec.Kubernetes = version.GitVersion
	return rec, rec.remove(traces)
}

// tracesHere are texts by which the recording machine could be told.
func tracesHere() ([]string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	var traces []string
	for _, field := range [][65]byte{u.Nodename, u.Release, u.Version} {
		if text := unix.ByteSliceToString(field[:]); len(text) > 3 {
			traces = append(traces, text)
		}
	}
	for _, path := range []string{"/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/sys/class/dmi/id/product_uuid"} {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if line := strings.TrimSpace(string(text)); len(line) > 3 {
			traces = append(traces, line, strings.ToUpper(line), strings.ToLower(line))
		}
	}
	return traces, nil
}

// remove overwrites traces in all values with as many other characters, so
// that lengths, and with them the encoding, stay.
func (r *Recording) remove(traces []string) error {
	for _, res := range r.Resources {
		for _, o := range slices.Concat(res.Kept, res.Created, res.Updated) {
			for _, trace := range traces {
				other := strings.ToLower(rand.Text() + rand.Text() + rand.Text() + rand.Text() + rand.Text())
				if len(other) < len(trace) {
					return fmt.Errorf("cannot replace a text of %d characters", len(trace))
				}
				text := strings.ReplaceAll(string(o.Value), trace, other[:len(trace)])
				copy(o.Value, text)
			}
		}
	}
	return nil
}
