package system

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// run runs a program of the root to its end. The last of what it prints is in the error, and in the log when it
// succeeds.
func (m *machine) run(ctx context.Context, argv ...string) error {
	var out lastOutput
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(baseEnv(), m.ownerEnv()...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // so that Run can end what a command started, too
	err := m.reaper.Run(ctx, cmd)
	text := out.text()
	if err != nil {
		if text != "" {
			return fmt.Errorf("%w: %s", err, text)
		}
		return err
	}
	if text != "" {
		m.log.Printf("%s: %s", argv[0], text)
	}
	return nil
}

// maxOutput is how much of a program's output is kept, in bytes.
const maxOutput = 4 << 10

// lastOutput keeps the end of what a program prints. A process that the program left behind may go on writing while
// others read, for as long as the machine runs.
type lastOutput struct {
	mu   sync.Mutex
	data []byte
	cut  bool
}

func (o *lastOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	p = p[max(0, len(p)-maxOutput):]
	over := max(0, len(o.data)+len(p)-maxOutput)
	o.cut = o.cut || over > 0 || len(p) < n
	o.data = append(o.data[:copy(o.data, o.data[over:])], p...)
	return n, nil
}

// text is what was kept, from the beginning of a line on.
func (o *lastOutput) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := string(o.data)
	if o.cut {
		if _, rest, ok := strings.Cut(text, "\n"); ok {
			text = rest
		}
		text = "...\n" + text
	}
	return strings.TrimSpace(text)
}
