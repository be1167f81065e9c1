package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/bench"
)

// singleServer is a server that is a cluster alone, in figures.
const singleServer = "single server"

// roleName is a role and its name in figures.
type roleName struct {
	role role
	name string
}

// idled is what machines of a role used, on average.
type idled struct {
	account account
	inUse   int64 // bytes
}

// idle measures new clusters of both kinds beside each other that have nothing
// to do.
func (r *run) idle(ctx context.Context, both pair[*cluster], roles []roleName) error {
	for _, c := range both {
		r.step.Update("idle: start " + c.kind.name())
		if err := c.anew(ctx); err != nil {
			return err
		}
	}
	if err := sameVersion(ctx, both); err != nil {
		return err
	}
	if n := len(both[0].machines); n > 1 {
		r.addSeconds(fmt.Sprintf("%d machines, first start: power-on of all to all Ready", n), bench.AtMostPeer(startGoal), both[0].formed, both[1].formed)
	}
	r.step.Update("idle: settle")
	if err := pause(ctx, r.Plan.Settle); err != nil {
		return err
	}
	var before pair[map[*machine]account]
	var err error
	for i, c := range both {
		if before[i], err = c.accounts(); err != nil {
			return err
		}
	}
	begin := time.Now()
	r.step.Update("idle: measure")
	if err := pause(ctx, r.Plan.Idle); err != nil {
		return err
	}
	hours := time.Since(begin).Hours()
	var after pair[map[*machine]account]
	for i, c := range both {
		if after[i], err = c.accounts(); err != nil {
			return err
		}
	}
	for _, role := range roles {
		var used pair[idled]
		for i, c := range both {
			if used[i], err = average(c.of(role.role), before[i], after[i]); err != nil {
				return err
			}
		}
		r.idleFigures(role, used, hours)
	}
	return nil
}

// average is of machines that must be alive.
func average(machines []*machine, before, after map[*machine]account) (idled, error) {
	var all []account
	var sum int64
	for _, m := range machines {
		if err := m.alive(); err != nil {
			return idled{}, err
		}
		inUse, err := m.inUse()
		if err != nil {
			return idled{}, err
		}
		all, sum = append(all, after[m].since(before[m])), sum+inUse
	}
	return idled{mean(all), sum / int64(len(machines))}, nil
}

// alive is an error once the machine has ended.
func (m *machine) alive() error {
	select {
	case <-m.power.done:
		return m.why(errors.New("the machine has ended"))
	default:
		return nil
	}
}
