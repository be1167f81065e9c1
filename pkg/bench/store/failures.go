package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// restart stops the only member and starts it again. It returns the time from
// the start of the process to the first answer with an object.
func (u *subject) restart(ctx context.Context) (time.Duration, error) {
	m, key := u.members[0], u.entries[0].key
	waiting, cancel := context.WithTimeout(ctx, formLimit)
	defer cancel()
	if err := m.stop(waiting); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := u.startMember(ctx, m); err != nil {
		return 0, err
	}
	for {
		err := m.ask(waiting, key)
		if err == nil {
			return time.Since(start), nil
		}
		if failed := errors.Join(m.failure(), waiting.Err()); failed != nil {
			return 0, fmt.Errorf("%s: start: %w", u.name(), errors.Join(failed, err))
		}
		if err := pause(waiting, 2*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// ask gets a key by a new connection. A client that finds nobody at first
// waits a second before it looks again, so this looks itself.
func (m *member) ask(ctx context.Context, key string) error {
	conn, err := net.Dial("unix", m.socket)
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	c, err := m.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, key)
	if err == nil && len(resp.Kvs) == 0 {
		err = fmt.Errorf("%s is missing", key)
	}
	return err
}

// failOver kills the leader and returns the time until a write through
// another member is accepted. Then the killed one is started again.
func (u *subject) failOver(ctx context.Context) (time.Duration, error) {
	leader, err := u.leader(ctx)
	if err != nil {
		return 0, err
	}
	other := u.members[0]
	if other == leader {
		other = u.members[1]
	}
	c, err := other.connect()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := accept(ctx, c); err != nil {
		return 0, fmt.Errorf("%s: write through %s: %w", u.name(), other.name, err)
	}
	start := time.Now()
	if err := leader.kill(); err != nil {
		return 0, err
	}
	took, err := nextAccepted(ctx, c, start)
	if err != nil {
		return 0, fmt.Errorf("%s: after its leader was killed: %w", u.name(), err)
	}
	if err := u.startMember(ctx, leader); err != nil {
		return 0, err
	}
	_, err = u.leader(ctx)
	return took, err
}

// nextAccepted sends a write every 25 ms, each of them waiting by itself: one
// that was on its way when the leader died may wait for long.
func nextAccepted(ctx context.Context, c *clientv3.Client, start time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, formLimit)
	defer cancel()
	answers := make(chan error)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-tick.C:
			go func() {
				err := accept(ctx, c)
				select {
				case answers <- err:
				case <-ctx.Done():
				}
			}()
		case err := <-answers:
			if err == nil {
				return time.Since(start), nil
			}
			last = err
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), last)
		}
	}
}

// accept has one write accepted.
func accept(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	_, err := c.Put(ctx, "/registry/leases/kube-system/bench", time.Now().String())
	return err
}
