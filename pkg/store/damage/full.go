package damage

import (
	"errors"
	"strings"
	"syscall"
)

// noSpace is in the text of what dqlite says when it starts on a full disk;
// its errors have no code for that (src/raft/uv_fs.c).
const noSpace = "not enough space to allocate"

// IsFull reports an error that says that the disk is full: one of a file
// operation of ours, or of dqlite's start.
//
// A running member gives no such error. It loses its leadership instead, and
// gains it again when there is space: so after an error of leadership ask
// pkg/store/space, and do not restart the member (see that package).
func IsFull(err error) bool {
	if err == nil {
		return false
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), noSpace)
}
