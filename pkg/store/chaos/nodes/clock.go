package nodes

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clock changes the time of day that one process sees, and nothing else does.
//
// Programs ask for the time in the vDSO, a page of code that the kernel maps
// into each of them. Its functions are replaced, in that process alone, by
// ones that ask the kernel and add an offset; chaos-mesh breaks clocks in the
// same way. Time namespaces do not help: they leave the time of day alone.
type clock struct {
	mem    string // path of the process's memory
	offset int64  // address of the seconds to add
}

// ErrClock says that the time of day cannot be changed here.
var ErrClock = errors.New("clocks of processes cannot be changed here")

// vdsoCode replaces __vdso_clock_gettime, __vdso_gettimeofday and __vdso_time.
// The three offsets of rip-relative operands are patched by assemble.
var vdsoCode = []struct {
	symbol  string
	code    []byte
	operand int // index of the operand that names the seconds to add
}{
	{"__vdso_clock_gettime", []byte{
		0xb8, 0xe4, 0, 0, 0, // mov eax, 228
		0x0f, 0x05, //          syscall
		0x85, 0xc0, //          test eax, eax
		0x75, 0x13, //          jne ret
		0x85, 0xff, //          test edi, edi (CLOCK_REALTIME)
		0x74, 0x05, //          je add
		0x83, 0xff, 0x05, //    cmp edi, 5 (CLOCK_REALTIME_COARSE)
		0x75, 0x0a, //          jne ret
		0x48, 0x8b, 0x0d, 0, 0, 0, 0, // add: mov rcx, [offset]
		0x48, 0x01, 0x0e, //    add [rsi], rcx
		0xc3, //                ret
	}, 23},
	{"__vdso_gettimeofday", []byte{
		0xb8, 0x60, 0, 0, 0, // mov eax, 96
		0x0f, 0x05, //          syscall
		0x48, 0x85, 0xff, //    test rdi, rdi
		0x74, 0x0a, //          je ret
		0x48, 0x8b, 0x0d, 0, 0, 0, 0, // mov rcx, [offset]
		0x48, 0x01, 0x0f, //    add [rdi], rcx
		0xc3, //                ret
	}, 15},
	{"__vdso_time", []byte{
		0x57,       //  push rdi
		0x31, 0xff, //           xor edi, edi
		0xb8, 0xc9, 0, 0, 0, //  mov eax, 201
		0x0f, 0x05, //           syscall
		0x5f,                         // pop rdi
		0x48, 0x03, 0x05, 0, 0, 0, 0, // add rax, [offset]
		0x48, 0x85, 0xff, //     test rdi, rdi
		0x74, 0x03, //           je ret
		0x48, 0x89, 0x07, //     mov [rdi], rax
		0xc3, //                 ret
	}, 14},
}

// newClock prepares the clock of a process that has just begun.
func newClock(ctx context.Context, pid int) (*clock, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: written for amd64 only", ErrClock)
	}
	start, end, err := vdso(pid)
	for tries := 0; errors.Is(err, ErrClock) && tries < 1000; tries++ {
		// A program that is just being executed has none yet.
		if err := pause(ctx, time.Millisecond); err != nil {
			return nil, err
		}
		start, end, err = vdso(pid)
	}
	if err != nil {
		return nil, err
	}
	c := &clock{mem: fmt.Sprintf("/proc/%d/mem", pid)}
	f, err := os.OpenFile(c.mem, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page := make([]byte, end-start)
	if _, err := f.ReadAt(page, start); err != nil {
		return nil, fmt.Errorf("read the vDSO of process %d: %w", pid, err)
	}
	patches, offset, err := assemble(page)
	if err != nil {
		return nil, err
	}
	c.offset = start + offset
	return c, whileOutside(ctx, pid, start, end, func() error {
		for _, p := range patches {
			if _, err := f.WriteAt(p.code, start+p.at); err != nil {
				return fmt.Errorf("%w: write the vDSO of process %d: %w", ErrClock, pid, err)
			}
		}
		return nil
	})
}

// set makes the time of day differ by d, in whole seconds. The write is one
// aligned word.
func (c *clock) set(d time.Duration) error {
	f, err := os.OpenFile(c.mem, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	word := binary.LittleEndian.AppendUint64(nil, uint64(d/time.Second))
	if _, err := f.WriteAt(word, c.offset); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

type patch struct {
	at   int64 // from the start of the vDSO
	code []byte
}

// assemble lays the code into the unused end of the vDSO's last page and makes
// its functions jump there. The offset is the last word.
func assemble(page []byte) ([]patch, int64, error) {
	lib, err := elf.NewFile(bytes.NewReader(page))
	if err != nil {
		return nil, 0, fmt.Errorf("%w: vDSO: %w", ErrClock, err)
	}
	symbols, err := lib.DynamicSymbols()
	if err != nil {
		return nil, 0, fmt.Errorf("%w: vDSO: %w", ErrClock, err)
	}
	const room = 128
	base := int64(len(page) - room)
	if len(page) < room || len(bytes.Trim(page[base:], "\x00")) != 0 {
		return nil, 0, fmt.Errorf("%w: the vDSO's last page is full", ErrClock)
	}
	offset := int64(len(page) - 8)
	area := make([]byte, room)
	used := int64(0)
	var jumps []patch
	for _, v := range vdsoCode {
		at := int64(-1)
		for _, s := range symbols {
			if s.Name == v.symbol {
				at = int64(s.Value)
			}
		}
		if at < 0 || at+5 > base {
			return nil, 0, fmt.Errorf("%w: the vDSO has no %s", ErrClock, v.symbol)
		}
		copy(area[used:], v.code)
		next := base + used + int64(v.operand) + 4 // operands count from the next instruction
		binary.LittleEndian.PutUint32(area[used+int64(v.operand):], uint32(int32(offset-next)))
		jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(base+used-(at+5))))
		jumps = append(jumps, patch{at, jump})
		used += int64(len(v.code))
	}
	return append([]patch{{base, area}}, jumps...), offset, nil
}

// vdso finds where the kernel put the vDSO.
func vdso(pid int) (start, end int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x ", &start, &end); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
		return start, end, nil
	}
	return 0, 0, fmt.Errorf("%w: process %d has no vDSO", ErrClock, pid)
}

// whileOutside runs f while the process is stopped and no thread of it is
// between start and end.
func whileOutside(ctx context.Context, pid int, start, end int64, f func() error) (err error) {
	for range 500 {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		outside, err := false, pause(ctx, time.Millisecond) // until the threads stand still
		if err == nil {
			outside, err = allOutside(pid, start, end)
		}
		if err == nil && outside {
			err = f()
		}
		if contErr := unix.Kill(pid, unix.SIGCONT); err != nil || contErr != nil {
			return errors.Join(err, contErr)
		}
		if outside {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: process %d never leaves the vDSO", ErrClock, pid)
}

// allOutside reads the program counter of each thread; see proc(5) on syscall.
// A thread that has not stopped yet has none.
func allOutside(pid int, start, end int64) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, path := range threads {
		data, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		fields := strings.Fields(string(data))
		if len(fields) < 3 {
			return false, nil
		}
		pc, err := strconv.ParseUint(fields[len(fields)-1], 0, 64)
		if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		if int64(pc) >= start && int64(pc) < end {
			return false, nil
		}
	}
	return len(threads) > 0, nil
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
