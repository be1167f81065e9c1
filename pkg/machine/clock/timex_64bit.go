//go:build !386 && !arm && !mips && !mipsle && !ppc

package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// setOffset and setErrors exist per word size, because Timex is made of C longs.
func setOffset(tx *unix.Timex, d time.Duration) { tx.Offset = d.Microseconds() }

func setErrors(tx *unix.Timex, d time.Duration) {
	tx.Maxerror, tx.Esterror = d.Microseconds(), d.Microseconds()
}
