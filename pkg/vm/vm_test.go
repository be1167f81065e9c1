package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/lane"
)

// hello says "hello" at the serial port and halts.
func hello() []byte {
	var code []byte
	code = append(code, 0xba, 0xf8, 0x03) // mov dx,0x3f8
	for _, c := range []byte("hello\n") {
		code = append(code, 0xb0, c, 0xee) // mov al,c; out dx,al
	}
	code = append(code, 0xf4, 0xeb, 0xfd) // hlt; jmp
	return code
}

func TestMachine(t *testing.T) {
	lane.Require(t, "vm")
	disk := filepath.Join(t.TempDir(), "disk,1")
	if err := os.WriteFile(disk, bootDisk(hello()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var out strings.Builder
	m, err := Start(ctx, Config{Disk: disk, MemoryMiB: 64, Console: &out, Watchdog: true, Forward: map[int]int{0: 22}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	first, err := m.WaitConsole(ctx, regexp.MustCompile(`h(el+)o`))
	if err != nil || first.Text != "hello" || len(first.Groups) != 1 || first.Groups[0] != "ell" || first.At <= 0 {
		t.Fatalf("console: %+v, %v; want hello", first, err)
	}
	t.Logf("kvm %v, hello after %v", m.KVM, first.At)
	if err := m.Pause(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitConsole(ctx, regexp.MustCompile(`hello`)); err != nil {
		t.Errorf("after reset: %v", err)
	}
	if err := m.Quit(ctx); err != nil {
		t.Errorf("quit: %v", err)
	}
	if _, err := m.WaitConsole(ctx, regexp.MustCompile(`more`)); !errors.Is(err, ErrOff) {
		t.Errorf("console of a machine that is off: %v; want ErrOff", err)
	}
	if got := strings.Count(out.String(), "hello"); got != 2 {
		t.Errorf("console writer saw hello %d times; want 2", got)
	}
}

func TestStartReportsQEMU(t *testing.T) {
	lane.Require(t, "vm")
	m, err := Start(t.Context(), Config{Disk: filepath.Join(t.TempDir(), "missing")})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("machine without its disk: %v; want QEMU's message", err)
	}
}

// TestTrialGuest shows that the trial for KVM can pass: translation runs it.
func TestTrialGuest(t *testing.T) {
	lane.Require(t, "vm")
	if err := tryGuest(t.Context(), "tcg", emulatedCPU); err != nil {
		t.Error(err)
	}
}

func TestConsoleFind(t *testing.T) {
	c := newConsole(nil)
	c.start = time.Now()
	for _, s := range []string{"one t", "wo\n", "two three\n"} {
		if _, err := c.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	re := regexp.MustCompile(`(?:(four)|(two))`)
	first, _, ok1 := c.find(re)
	second, _, ok2 := c.find(re)
	_, changed, ok3 := c.find(re)
	if !ok1 || !ok2 || ok3 || changed == nil {
		t.Fatalf("found %v %v %v; want the two texts once each", ok1, ok2, ok3)
	}
	if first.Groups[0] != "" || first.Groups[1] != "two" || second.At < first.At {
		t.Errorf("matches %+v, %+v", first, second)
	}
	c.close()
	if _, changed, _ := c.find(re); changed != nil {
		t.Error("a closed console promises more")
	}
}
