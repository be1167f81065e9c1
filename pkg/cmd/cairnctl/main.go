// Command cairnctl is the operator's command: it shows and steers a node, and checks cloud-configs.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	control "github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/machine/adminapi"
	"github.com/cairn-os/cairn/pkg/machine/logfile"
	"github.com/cairn-os/cairn/pkg/store/admin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Stdout, os.Stderr, os.Args[1:], paths{
		daemon: adminapi.Path, init: initctl.Path, logs: logfile.Dir, control: control.Socket, store: admin.Socket,
		storeProgram: "/usr/bin/cairn-store", storeDir: "/var/lib/cairn/store", root: "/",
	})
	stop()
	os.Exit(code)
}
