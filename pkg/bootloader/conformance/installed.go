package conformance

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cairn-os/cairn/pkg/bootloader/sysfile"
	"github.com/cairn-os/cairn/pkg/partition"
	"github.com/cairn-os/cairn/pkg/slot"
)

// Installed are the files of a machine as the image builder makes it, with
// kernels that are a header only, by partition and path.
func Installed(confirmed slot.Slot) map[string]map[string][]byte {
	system := map[string][]byte{
		sysfile.State1: encode(slot.New(confirmed)),
		sysfile.State2: encode(slot.State{Seq: 0, Confirmed: confirmed, Trial: slot.None}),
	}
	return map[string]map[string][]byte{
		partition.System: system, partition.BootA: bootFiles("a"), partition.BootB: bootFiles("b"),
	}
}

func encode(s slot.State) []byte {
	data, err := s.Encode()
	if err != nil {
		return nil // an invalid state is no file
	}
	return data
}

// bootFiles are those of a slot; text makes their content its own.
func bootFiles(text string) map[string][]byte {
	kernel := make([]byte, 2048)
	kernel[0x1f1] = 4
	binary.LittleEndian.PutUint16(kernel[0x1fe:], 0xaa55)
	copy(kernel[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(kernel[0x206:], 0x020f)
	kernel[0x211] = 1
	copy(kernel[1024:], text)
	env, err := slot.EncodeBlock(1024, slot.Variable{Name: "cmdline", Value: "version=" + text})
	if err != nil {
		env = nil
	}
	files := map[string][]byte{"vmlinuz": kernel, "initramfs.img": []byte("initramfs " + text), "slot.env": env}
	var sums bytes.Buffer
	for _, name := range []string{"vmlinuz", "initramfs.img", "slot.env"} {
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(files[name]), name)
	}
	files["sha256sums"] = sums.Bytes()
	return files
}
