package update

import (
	"fmt"

	"github.com/cairn-os/cairn/pkg/update/history"
)

// StepReboot is the last step: the machine is asked to restart.
const StepReboot = "reboot"

// Progress is where a run is.
type Progress struct {
	Step string `json:"step"` // in words, such as "write root"
	// Done and Total count the step's bytes; both 0 where there is nothing to count.
	Done     int64            `json:"done,omitempty"`
	Total    int64            `json:"total,omitempty"`
	Transfer history.Transfer `json:"transfer"`
}

// String is the progress in one line.
func (p Progress) String() string {
	if p.Total == 0 {
		return p.Step
	}
	return fmt.Sprintf("%s: %d %%, %s downloaded", p.Step, 100*p.Done/p.Total, history.Bytes(p.Transfer.Downloaded))
}

// meter tells the progress of one step, each percent once.
type meter struct {
	r     *run
	step  string
	total int64
	done  int64
	told  int64
}

func (r *run) meter(step string, total int64) *meter {
	m := &meter{r: r, step: step, total: total, told: -1}
	m.at(0)
	return m
}

func (m *meter) add(n int64) { m.at(m.done + n) }

func (m *meter) at(done int64) {
	m.done = done
	percent := int64(100)
	if m.total > 0 {
		percent = 100 * done / m.total
	}
	if percent != m.told {
		m.told = percent
		m.r.o.Progress(Progress{m.step, done, m.total, m.r.transfer})
	}
}
