package sweep

import (
	"encoding/json"
	"fmt"
	"os"
)

// Arguments are those of a QEMU 7.2 or later whose guest boots from the raw
// image, and that logs all writes to it in the file log; they stand in the
// place of a drive. log is made anew: blklogwrites wants a file that exists,
// and an empty one. The image is written to as well, so keep a copy of it for
// Recording.Base.
//
//   - The device says that it has a cache (write-cache=on), so the guest
//     flushes. With the cache off QEMU would flush after each write, and the
//     recording could lose nothing.
//   - One request at a time: a queue of four descriptors that may not be
//     indirect holds one write. So no write completes while a flush is under
//     way, and the log's order is that of the disk.
//   - GRUB under a BIOS does not flush; QEMU then flushes after its writes,
//     except after one that follows a flush with nothing between. Such a write
//     stays unflushed in the recording until the kernel flushes: a lost count
//     of a try, which the sweep judges.
//
// The log's head is brought up to date at flushes and when QEMU ends in order.
func Arguments(image, log string) ([]string, error) {
	f, err := os.OpenFile(log, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	type node map[string]any
	file := func(path string) node { return node{"driver": "file", "filename": path} }
	blockdev, err := json.Marshal(node{"driver": "blklogwrites", "node-name": "recorded", "file": file(image), "log": file(log)})
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return []string{
		"-blockdev", string(blockdev),
		"-device", "virtio-blk-pci,drive=recorded,bootindex=1,write-cache=on,num-queues=1,queue-size=4,indirect_desc=off",
	}, nil
}
