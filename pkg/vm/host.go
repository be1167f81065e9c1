package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const (
	program = "qemu-system-x86_64"
	// emulatedCPU leaves out cmpxchg16b: with it, kernels that use it in
	// their allocator crash under QEMU 7.2's translation (2026-11).
	emulatedCPU = "qemu64,cx16=off"
	// kvmPatience is how long the trial guest may take; a good one needs
	// half a second.
	kvmPatience = 4 * time.Second
)

// KVM reports whether a guest runs by /dev/kvm. It tries one the first time,
// because the device also opens on hosts that then run no guest.
func KVM(ctx context.Context) bool { return kvmOnce(ctx) }

// kvmOnce remembers the answer: the host's does not change.
var kvmOnce = func() func(context.Context) bool {
	var once sync.Once
	var works bool
	return func(ctx context.Context) bool {
		once.Do(func() { works = tryKVM(context.WithoutCancel(ctx)) == nil })
		return works
	}
}()

// exitCode writes 0x10 to port 0xf4, where the debug device ends QEMU with
// exitStatus: mov al,0x10; out 0xf4,al; hlt; jmp.
func exitCode() []byte { return []byte{0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd} }

// bootDisk is a disk that a BIOS boots to code. SeaBIOS reads none that is
// much smaller.
func bootDisk(code []byte) []byte {
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

const exitStatus = 0x10<<1 | 1

func tryKVM(ctx context.Context) (err error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := kvm.Close(); err != nil {
		return err
	}
	return tryGuest(ctx, "kvm", "host")
}

// tryGuest boots exitCode.
func tryGuest(ctx context.Context, accel, cpu string) (err error) {
	dir, err := os.MkdirTemp("", "cairn-vm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, bootDisk(exitCode()), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kvmPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-m", "64", "-accel", accel, "-cpu", cpu, "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "if=none,id=disk,format=raw,readonly=on,file="+disk, "-device", "virtio-blk-pci,drive=disk,bootindex=1")
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitStatus {
		return nil
	}
	return fmt.Errorf("trial guest: %w", errors.Join(err, ctx.Err()))
}

// uefi returns the options for OVMF, with a fresh copy of its variables in dir.
func uefi(dir string) ([]string, error) {
	for _, size := range []string{"_4M", ""} {
		code := "/usr/share/OVMF/OVMF_CODE" + size + ".fd"
		if _, err := os.Stat(code); err != nil {
			continue
		}
		vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS" + size + ".fd")
		if err != nil {
			return nil, err
		}
		own := filepath.Join(dir, "vars.fd")
		if err := os.WriteFile(own, vars, 0o600); err != nil {
			return nil, err
		}
		return []string{
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + code,
			"-drive", "if=pflash,unit=1,format=raw,file=" + own,
		}, nil
	}
	return nil, errors.New("no UEFI firmware (install ovmf)")
}
