package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// subject is a system under measurement with its clients and its data.
type subject struct {
	*system
	mix     *mix
	clients []*clientv3.Client
	entries []*entry // what it holds
	keys    int64    // numbers of new keys that were used
	// Revisions before the last slice of writes, and before that.
	previous, older int64
	lastError       error // of a client's request
}

// client returns client i, a connection of its own: the apiserver has one for
// each resource. Clients are spread over the members.
func (u *subject) client(i int) (*clientv3.Client, error) {
	for len(u.clients) <= i {
		c, err := u.members[len(u.clients)%len(u.members)].connect()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u.name(), err)
		}
		u.clients = append(u.clients, c)
	}
	return u.clients[i], nil
}

// close ends clients and processes.
func (u *subject) close(ctx context.Context) error {
	var all []error
	for _, c := range u.clients {
		all = append(all, c.Close())
	}
	return errors.Join(append(all, u.stop(ctx))...)
}

// watchOptions are those of the apiserver's watches.
func watchOptions(after int64) []clientv3.OpOption {
	return []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithRev(after + 1)}
}

// watch opens what an apiserver at each member has open all the time: a watch
// of every resource. What they deliver is dropped.
func (u *subject) watch(ctx context.Context) error {
	for i := range u.members {
		c, err := u.client(i)
		if err != nil {
			return err
		}
		revision, err := u.revision(ctx)
		if err != nil {
			return err
		}
		for _, res := range u.mix.resources {
			if res.Watches == 0 {
				continue
			}
			events := c.Watch(ctx, registry+res.Name+"/", watchOptions(revision)...)
			go func() {
				for range events {
				}
			}()
		}
	}
	return nil
}

// revision is the current one.
func (u *subject) revision(ctx context.Context) (int64, error) {
	c, err := u.client(0)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	resp, err := c.Get(ctx, registry+"none")
	if err != nil {
		return 0, fmt.Errorf("%s: current revision: %w", u.name(), err)
	}
	return resp.Header.Revision, nil
}

// compact forgets what was history before the last slice began.
func (u *subject) compact(ctx context.Context) error {
	revision, err := u.revision(ctx)
	if err != nil {
		return err
	}
	u.older, u.previous = u.previous, revision
	if u.older == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	// Ours bounds the history by itself, and may have been there before.
	if _, err := u.clients[0].Compact(ctx, u.older); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("%s: compact: %w", u.name(), err)
	}
	return nil
}

// written is what all members have written to disk, in bytes.
func (u *subject) written() (sum int64, err error) {
	for _, m := range u.members {
		n, err := m.written()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", u.name(), err)
		}
		sum += n
	}
	return sum, nil
}

// watchMemory looks at the members' memory until ctx ends. The returned
// function waits for that and tells the peak of the largest member.
func (u *subject) watchMemory(ctx context.Context) func() (memory, error) {
	type outcome struct {
		peak memory
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		for o.err == nil {
			for _, m := range u.members {
				now, err := m.memory()
				o.err = errors.Join(o.err, err)
				o.peak.anonymous, o.peak.resident = max(o.peak.anonymous, now.anonymous), max(o.peak.resident, now.resident)
			}
			if pause(ctx, 250*time.Millisecond) != nil {
				break
			}
		}
		done <- o
	}()
	return func() (memory, error) {
		o := <-done
		return o.peak, o.err
	}
}

// settle waits until the members have done what they do behind the clients'
// backs, so that it counts as theirs and does not disturb the other system.
func (u *subject) settle(ctx context.Context) error {
	const step, calm, limit = 200 * time.Millisecond, 10 * time.Millisecond, 8 * time.Second
	last, err := u.cpu()
	if err != nil {
		return err
	}
	for range limit / step {
		if err := pause(ctx, step); err != nil {
			return err
		}
		now, err := u.cpu()
		if err != nil {
			return err
		}
		if now-last <= calm*time.Duration(len(u.members)) {
			return nil
		}
		last = now
	}
	return nil
}

// cpu is the processor time that all members have used.
func (u *subject) cpu() (sum time.Duration, err error) {
	for _, m := range u.members {
		d, err := m.cpu()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", u.name(), err)
		}
		sum += d
	}
	return sum, nil
}

// size is how much disk space the members' data takes, in bytes.
func (u *subject) size() (sum int64, err error) {
	for _, m := range u.members {
		err := filepath.WalkDir(m.dir, func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // given up meanwhile
			}
			sum += st.Blocks * 512
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("%s: size of the data: %w", u.name(), err)
		}
	}
	return sum, nil
}
