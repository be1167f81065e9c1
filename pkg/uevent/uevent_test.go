package uevent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const disk = "add@/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6\x00ACTION=add\x00" +
	"DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6\x00SUBSYSTEM=block\x00MAJOR=254\x00MINOR=6\x00" +
	"DEVNAME=vda6\x00DEVTYPE=partition\x00PARTN=6\x00PARTNAME=CAIRN_DATA\x00SEQNUM=1204\x00"

func TestParse(t *testing.T) {
	got, err := Parse([]byte(disk))
	if err != nil {
		t.Fatal(err)
	}
	want := Event{Action: "add", DevPath: "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6", Env: map[string]string{
		"ACTION": "add", "DEVPATH": "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6", "SUBSYSTEM": "block",
		"MAJOR": "254", "MINOR": "6", "DEVNAME": "vda6", "DEVTYPE": "partition", "PARTN": "6", "PARTNAME": "CAIRN_DATA", "SEQNUM": "1204",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	if got.Subsystem() != "block" {
		t.Errorf("Subsystem() = %q; want block", got.Subsystem())
	}
}

func TestParseRefuses(t *testing.T) {
	for _, msg := range []string{"", "\x00", "libudev\x00\xfe\xed", "add", "add@", "@/x", "add@/x\x00novalue\x00", "add@/x\x00=v\x00"} {
		if e, err := Parse([]byte(msg)); !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse(%q) = %v, %v; want ErrMalformed", msg, e, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(disk))
	f.Add([]byte("change@/module/x\x00A=\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		e, err := Parse(msg)
		if err == nil && (e.Action == "" || e.DevPath == "" || e.Env == nil) {
			t.Errorf("Parse(%q) = %v without an error", msg, e)
		}
	})
}

func TestRunEnds(t *testing.T) {
	l, err := Listen()
	if err != nil {
		t.Skipf("no device events here: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Run(ctx, func(Event) {}, func(error) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() = %v; want the context's end", err)
	}
}
