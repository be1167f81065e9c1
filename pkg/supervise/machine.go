package supervise

import (
	"errors"
	"fmt"
	"time"

	"github.com/cairn-os/cairn/pkg/reaper"
)

// State is where a service stands.
type State string

// The states; the package comment draws the transitions.
const (
	Waiting  State = "waiting"  // for its dependencies, before its first start
	Starting State = "starting" // started, not yet ready
	Ready    State = "ready"    // it serves
	Done     State = "done"     // a one-shot service that has done its work
	Stopping State = "stopping" // told to end
	Backoff  State = "backoff"  // ended by itself, waits to be started again
	Stopped  State = "stopped"  // by an operator or a shutdown; stays so until told to start
)

// Restart delays. The first one is short, because a single crash should cost pods and operators nothing.
const (
	quickDelay   = 200 * time.Millisecond
	firstDelay   = time.Second
	maxDelay     = time.Minute
	healthyAfter = 5 * time.Minute  // ready for so long, a service's earlier failures are forgotten
	killPatience = 10 * time.Second // between two looks at a process that SIGKILL did not end
	sayEvery     = 10 * time.Second // between two status messages of one service on the console
)

// action is what a transition asks the supervisor to do. Order matters.
type action struct {
	kind actionKind
	text string // of actLog
}

type actionKind string

const (
	actStart actionKind = "start" // fork; answered at once by spawned or spawnFailed
	actTerm  actionKind = "term"  // SIGTERM to the main process
	actKill  actionKind = "kill"  // SIGKILL to the service
	actSweep actionKind = "sweep" // kill what the ended main process left behind
	actLog   actionKind = "log"   // a line for the console
	actTail  actionKind = "tail"  // the service's last lines of output for the console
)

func logf(format string, args ...any) action {
	return action{kind: actLog, text: fmt.Sprintf(format, args...)}
}

// errIllegal is an event that a state does not know: a bug of the supervisor, logged and otherwise harmless.
var errIllegal = errors.New("illegal transition")

// afterStop is what follows Stopping.
type afterStop int

const (
	thenStopped afterStop = iota
	thenStart
	thenBackoff
)

// machine is the state of one service. All times are since power-on. It has no lock: the Supervisor's guards it.
type machine struct {
	svc      Service
	state    State
	then     afterStop     // meaningful in Stopping
	down     bool          // the whole supervisor is stopping: nothing may start again
	deadline time.Duration // when tick has something to do; 0: never
	pid      int           // not 0 exactly in Starting, Ready and Stopping
	killed   bool          // SIGKILL was sent in this Stopping
	failures int           // in a row
	starts   int
	started  time.Duration
	ready    time.Duration // 0: not ready
	lastExit string
	message  string        // what the process said last of itself
	told     string        // the message that the console has seen last
	mayTell  time.Duration // when the console may see the next one
}

// satisfied says whether services that come after this one may start.
func (m *machine) satisfied() bool { return m.state == Ready || m.state == Done }

func newMachine(svc Service) *machine { return &machine{svc: svc, state: Waiting} }

func (m *machine) illegal(event string) error {
	return fmt.Errorf("%s: %w: %s while %s", m.svc.Name, errIllegal, event, m.state)
}

// dependenciesReady is delivered when all of After are ready, once.
func (m *machine) dependenciesReady() ([]action, error) {
	if m.state != Waiting {
		return nil, m.illegal("dependencies ready")
	}
	return m.start(), nil
}

// start moves to Starting; spawned or spawnFailed must follow before any other event.
func (m *machine) start() []action {
	m.state, m.deadline, m.ready, m.killed, m.message = Starting, 0, 0, false, ""
	return []action{{kind: actStart}}
}

func (m *machine) spawned(now time.Duration, pid int) ([]action, error) {
	if m.state != Starting || m.pid != 0 {
		return nil, m.illegal("spawned")
	}
	m.pid, m.started = pid, now
	m.starts++
	acts := []action{logf("%s started, pid %d", m.svc.Name, pid)}
	if !m.svc.Notify && !m.svc.Oneshot {
		m.state, m.ready = Ready, now
		return acts, nil
	}
	if m.svc.ReadyTimeout > 0 {
		m.deadline = now + m.svc.ReadyTimeout
	}
	return acts, nil
}

func (m *machine) spawnFailed(now time.Duration, err error) ([]action, error) {
	if m.state != Starting || m.pid != 0 {
		return nil, m.illegal("spawn failed")
	}
	m.lastExit = err.Error()
	return m.backoff(now, "could not be started: "+err.Error()), nil
}

// backoff counts a failure and waits before the next start.
func (m *machine) backoff(now time.Duration, why string) []action {
	if m.ready != 0 && now-m.ready >= healthyAfter {
		m.failures = 0
	}
	m.failures++
	d := delay(m.failures)
	m.state, m.pid, m.ready, m.deadline = Backoff, 0, 0, now+d
	return []action{logf("%s %s; start again in %s", m.svc.Name, why, d)}
}

// delay is the pause after the n-th failure in a row.
func delay(n int) time.Duration {
	if n <= 1 {
		return quickDelay
	}
	d := firstDelay
	for range n - 2 {
		if d *= 2; d >= maxDelay {
			return maxDelay
		}
	}
	return d
}

// notified is READY=1 of the main process.
func (m *machine) notified(now time.Duration) ([]action, error) {
	switch m.state {
	case Starting:
		m.state, m.ready, m.deadline = Ready, now, 0
		return []action{logf("%s ready after %s", m.svc.Name, short(now-m.started))}, nil
	case Ready, Stopping: // repeated, or too late to matter
		return nil, nil
	default:
		return nil, m.illegal("ready notification")
	}
}

// said is a STATUS= of the main process: why it is not ready yet, mostly. Who stands before the machine sees it, too;
// a process that talks much is heard every sayEvery, with what it said last.
func (m *machine) said(now time.Duration, text string) []action {
	m.message = text
	return m.tell(now)
}

// tell brings the newest message to the console, when it is new there and its time has come.
func (m *machine) tell(now time.Duration) []action {
	if m.message == "" || m.message == m.told || now < m.mayTell {
		return nil
	}
	m.told, m.mayTell = m.message, now+sayEvery
	return []action{logf("%s: %s", m.svc.Name, m.message)}
}

// exited is the end of the main process.
func (m *machine) exited(now time.Duration, end reaper.Exit) ([]action, error) {
	acts := []action{{kind: actSweep}}
	ran := short(now - m.started)
	exit := end.String()
	switch m.state {
	case Starting, Ready:
		m.lastExit = exit
		if m.svc.Oneshot && end.Success() {
			return append(acts, m.finish(now, ran)), nil
		}
		m.mayTell = min(m.mayTell, now) // its last words say why
		acts = append(acts, m.tell(now)...)
		acts = append(acts, m.backoff(now, fmt.Sprintf("ended by itself after %s: %s", ran, exit))...)
		return append(acts, action{kind: actTail}), nil
	case Stopping:
		m.lastExit = exit
		m.pid, m.deadline, m.ready = 0, 0, 0
		switch {
		case m.then == thenBackoff && !m.down:
			return append(acts, m.backoff(now, "ended: "+exit)...), nil
		case m.then == thenStart && !m.down:
			m.failures = 0
			return append(acts, m.start()...), nil
		}
		m.state = Stopped
		return append(acts, logf("%s stopped: %s", m.svc.Name, exit)), nil
	case Stopped: // abandoned at shutdown, and now it ended after all
		return nil, nil
	default:
		return nil, m.illegal("exit")
	}
}

// finish moves a one-shot service to Done. What it said while it worked is no longer so.
func (m *machine) finish(now, ran time.Duration) action {
	if m.ready == 0 {
		m.ready = now
	}
	m.state, m.pid, m.deadline, m.failures, m.message, m.told = Done, 0, 0, 0, "", ""
	return logf("%s done after %s", m.svc.Name, ran)
}

// tick acts on a deadline that has passed, and on a message that had to wait.
func (m *machine) tick(now time.Duration) ([]action, error) {
	acts := m.tell(now)
	if m.deadline == 0 || now < m.deadline {
		return acts, nil
	}
	more, err := m.late(now)
	return append(acts, more...), err
}

func (m *machine) late(now time.Duration) ([]action, error) {
	switch m.state {
	case Starting:
		acts := []action{logf("%s was not ready within %s: stop it and start it again", m.svc.Name, m.svc.ReadyTimeout), {kind: actTail}}
		return append(acts, m.stop(now, thenBackoff)...), nil
	case Stopping:
		return m.insist(now), nil
	case Backoff:
		return m.start(), nil
	default:
		return nil, m.illegal("deadline")
	}
}

// insist follows SIGTERM by SIGKILL, and that by patience or, at shutdown, by giving the process up.
func (m *machine) insist(now time.Duration) []action {
	m.deadline = now + killPatience
	if !m.killed {
		m.killed = true
		return []action{logf("%s (pid %d) did not end within %s of SIGTERM: SIGKILL", m.svc.Name, m.pid, m.svc.StopGrace), {kind: actKill}}
	}
	acts := []action{logf("%s (pid %d) survives SIGKILL: it hangs in the kernel, probably on a disk", m.svc.Name, m.pid)}
	if !m.down {
		return acts
	}
	m.state, m.pid, m.deadline, m.ready = Stopped, 0, 0, 0
	return acts
}

// stop moves a running service to Stopping.
func (m *machine) stop(now time.Duration, then afterStop) []action {
	m.state, m.then, m.killed, m.deadline = Stopping, then, false, now+m.svc.StopGrace
	return []action{{kind: actTerm}}
}

// request is what operators and the shutdown ask for.
type request string

const (
	reqStart    request = "start"
	reqStop     request = "stop"
	reqRestart  request = "restart"
	reqShutdown request = "shutdown" // stop, for good
)

func (m *machine) request(now time.Duration, req request) ([]action, error) {
	if m.down && req != reqShutdown {
		return nil, fmt.Errorf("%s: the machine is shutting down", m.svc.Name)
	}
	switch req {
	case reqShutdown:
		m.down = true
		return m.end(now), nil
	case reqStop:
		return m.end(now), nil
	case reqStart, reqRestart:
	default:
		return nil, fmt.Errorf("%s: unknown request %q", m.svc.Name, req)
	}
	switch m.state {
	case Starting, Ready:
		if req == reqStart {
			return nil, nil
		}
		return m.stop(now, thenStart), nil
	case Stopping:
		m.then = thenStart
		return nil, nil
	case Waiting: // it starts when it can; an operator's wish does not make dependencies ready
		return nil, nil
	case Backoff, Stopped, Done: // what is done is done once more
		m.failures = 0
		return m.start(), nil
	default:
		return nil, m.illegal(string(req))
	}
}

// end leads any state to Stopped.
func (m *machine) end(now time.Duration) []action {
	switch m.state {
	case Starting, Ready:
		return m.stop(now, thenStopped)
	case Stopping:
		m.then = thenStopped
		return nil
	case Stopped:
		return nil
	case Done:
		m.state, m.ready = Stopped, 0
		return nil
	default: // Waiting and Backoff have no process
		m.state, m.deadline = Stopped, 0
		return []action{logf("%s stopped", m.svc.Name)}
	}
}

// invariant is checked after every event.
func (m *machine) invariant() error {
	running := m.state == Starting || m.state == Ready || m.state == Stopping
	switch {
	case running != (m.pid != 0):
		return fmt.Errorf("%s: invariant: pid %d while %s", m.svc.Name, m.pid, m.state)
	case (m.state == Backoff || m.state == Stopping) && m.deadline == 0:
		return fmt.Errorf("%s: invariant: no deadline while %s", m.svc.Name, m.state)
	case (m.state == Ready || m.state == Waiting || m.state == Stopped || m.state == Done) && m.deadline != 0:
		return fmt.Errorf("%s: invariant: a deadline while %s", m.svc.Name, m.state)
	case m.state == Done && !m.svc.Oneshot:
		return fmt.Errorf("%s: invariant: done, and no one-shot service", m.svc.Name)
	case m.ready != 0 && m.state != Ready && m.state != Done && m.state != Stopping:
		return fmt.Errorf("%s: invariant: ready at %s while %s", m.svc.Name, m.ready, m.state)
	}
	return nil
}

func short(d time.Duration) time.Duration {
	if d > 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}
