package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/build/disk"
	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/build/lane"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/vm"
)

// bootLimit bounds one boot to Ready in emulation on a busy machine.
const bootLimit = 8 * time.Minute

func newTestVM(t *testing.T, built *image.Output, o VMOptions) *VM {
	t.Helper()
	o.Name, o.Dir, o.DiskSize, o.Watchdog = "vm-1", t.TempDir(), 6<<30, true
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 1024
	}
	m, err := NewVM(built, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func power(t *testing.T, m *VM) {
	t.Helper()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("runs on %s", m.Emulated())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the console's end:\n%s", m.Console().Tail(60))
		}
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
}

// TestVMFirmware boots the image by either firmware to a served page, and
// shuts it down by its power button.
func TestVMFirmware(t *testing.T) {
	lane.Require(t, "vm")
	built := builtImage(t)
	for _, firmware := range []vm.Firmware{vm.BIOS, vm.UEFI} {
		t.Run(string(firmware), func(t *testing.T) {
			m := newTestVM(t, built, VMOptions{Firmware: firmware})
			power(t, m)
			check(within(t, bootLimit), t, m, built, m.o.Dir)
			if firmware == vm.UEFI {
				testCtrlAltDel(t, m)
			}
			if err := m.Stop(within(t, 3*time.Minute)); err != nil {
				t.Fatal(err)
			}
			if l, ok := m.Console().Find(outlived); ok {
				t.Errorf("a process outlived its grace period: %s", l.Text)
			}
			checkDataClean(t, m)
		})
	}
}

// testCtrlAltDel presses the keys and expects an orderly stop and a new boot.
func testCtrlAltDel(t *testing.T, m *VM) {
	t.Helper()
	from := m.Console().Len()
	if err := m.CtrlAltDel(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, 5*time.Minute)
	for _, want := range []string{`cairn: the node is down: reboot`, `Linux version`, `services started`} {
		_, n, err := m.Console().Wait(ctx, regexp.MustCompile(want), from)
		if err != nil {
			t.Fatal(err)
		}
		from = n
	}
}

// checkDataClean asserts that the data partition was unmounted in order: no
// journal to replay and nothing for e2fsck to mend.
func checkDataClean(t *testing.T, m *VM) {
	t.Helper()
	data, ok := partition.Find(partition.Table(true), partition.Data)
	if !ok {
		t.Fatal("no data partition in the table")
	}
	target := fmt.Sprintf("%s?offset=%d", m.Disk(), data.Start)
	out, err := exec.Command("e2fsck", "-fn", target).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck -fn of the data partition: %v\n%s", err, out)
	}
	out, err = exec.Command("dumpe2fs", "-h", target).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Filesystem state:         clean") || strings.Contains(string(out), "needs_recovery") {
		t.Errorf("the data partition was not unmounted in order: %v\n%s", err, out)
	}
}

// TestVMFlippedByte changes one byte of the root file system and expects the
// kernel to refuse it and the console to say so.
func TestVMFlippedByte(t *testing.T) {
	lane.Require(t, "vm")
	built := builtImage(t)
	root, err := os.ReadFile(built.Root)
	if err != nil {
		t.Fatal(err)
	}
	// The first block holds EROFS' superblock, which mounting reads.
	const at = 1024 + 64
	m := newTestVM(t, built, VMOptions{})
	if err := disk.WriteAt(m.Disk(), partition.RootA, []byte{root[at] ^ 0xff}, at); err != nil {
		t.Fatal(err)
	}
	power(t, m)
	refused := regexp.MustCompile(`(?i)cairn.*(verity|verif).*`)
	line, _, err := m.Console().Wait(within(t, 3*time.Minute), refused, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the console says: %s", line.Text)
	if l, ok := m.Console().Find(regexp.MustCompile(`phase \d+/\d+ data`)); ok {
		t.Errorf("the boot went on with a corrupt root: %s", l.Text)
	}
}

// TestVMPulledPlug pulls the plug right after a pod was created, ten times.
func TestVMPulledPlug(t *testing.T) {
	lane.Require(t, "vm")
	built := builtImage(t)
	m := newTestVM(t, built, VMOptions{})
	power(t, m)
	cluster, err := Access(within(t, bootLimit), m, built, m.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		name := fmt.Sprintf("plug-%d", i)
		ctx := within(t, bootLimit)
		if err := cluster.WaitNodeReady(ctx, m.Name()); err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		if err := cluster.createPod(ctx, name, built.HelloTag); err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.WaitPod(within(t, bootLimit), name); err != nil {
			t.Fatalf("cut %d: %v\n%s", i, err, m.Console().Tail(40))
		}
		t.Logf("cut %d: the pod runs %.1f s after power-on", i, time.Since(m.PowerOn()).Seconds())
		if err := cluster.deletePod(within(t, time.Minute), name); err != nil {
			t.Fatal(err)
		}
	}
}

// createPod creates a pod that is bound to no controller, so that nothing but
// the store can bring it back.
func (c *Cluster) createPod(ctx context.Context, name, image string) error {
	_, err := c.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "hello", Image: image, ImagePullPolicy: corev1.PullNever,
		}}},
	}, metav1.CreateOptions{})
	return err
}

func (c *Cluster) deletePod(ctx context.Context, name string) error {
	now := int64(0)
	return c.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}
