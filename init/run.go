package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/cairn-os/cairn/init/internal/bootlog"
	"github.com/cairn-os/cairn/init/internal/early"
	"github.com/cairn-os/cairn/init/internal/emergency"
	"github.com/cairn-os/cairn/init/internal/feeder"
	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/init/internal/system"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/initctl"
	"github.com/cairn-os/cairn/pkg/mount"
	"github.com/cairn-os/cairn/pkg/power"
	"github.com/cairn-os/cairn/pkg/watchdog"
	"golang.org/x/sys/unix"
)

// Exit codes of a container, by which its keeper knows what the node was asked for.
const (
	exitPowerOff = 0
	exitFailed   = 1
	exitUsage    = 2
	exitReboot   = 3
)

// listen takes every signal that asks PID 1 to stop.
func listen() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGUSR2, unix.SIGPWR)
	// These would end PID 1: a write to a console that went away, or a slip of somebody's kill. They are taken and
	// dropped, not ignored: what is ignored stays so in every process that init starts, down to the shells in pods.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGHUP, unix.SIGQUIT, unix.SIGABRT)
	return signals
}

// machine runs the stage that fits the root and ends the machine's run afterwards. It never returns: when even reboot(2)
// fails the machine stays, with the reason on its console.
func machine() {
	signals := listen()
	ctx := context.Background()
	var logger *log.Logger
	var line cmdline.Line
	var dog *feeder.Feeder
	stage, action := "the start", power.Reboot
	err := guard.Call(func() (err error) {
		if logger, line, err = early.Prepare(); err != nil {
			return err
		}
		// As early as can be: what hangs before this needs a person.
		dog = feeder.New(logger.Printf, watchdog.Path)
		if _, err := dog.Arm(); err != nil {
			logger.Print(err)
		}
		inRAM, err := mount.IsRAM("/")
		if err != nil {
			return err
		}
		if inRAM {
			stage = "early boot"
			return early.Run(ctx, logger, line, dog)
		}
		stage = "the system"
		action, err = system.Run(ctx, system.Options{Line: line, Since: bootlog.SincePowerOn, Log: logger, Signals: signals, Watchdog: dog})
		return err
	})
	if logger == nil {
		logger = bootlog.ToStderr()
	}
	if err != nil {
		action = power.Reboot
		w := emergency.Waiter{Logf: logger.Printf, Console: console(), Signals: signals, Watchdog: dog}
		w.Wait(ctx, line, stage, err)
		dog.Stop() // and armed: the restart must not hang either
		guard.Within(30*time.Second, logger.Printf, "sync", func() error { unix.Sync(); return nil })
	}
	logger.Print(guard.Call(action.Do))
	select {}
}

// console is what a person at the machine types on; nil when there is none.
func console() io.Reader {
	f, err := os.Open("/dev/console")
	if err != nil {
		return nil
	}
	return f
}

// container runs the system stage in name spaces that someone prepared.
func container(args []string) int {
	flags := flag.NewFlagSet("init", flag.ContinueOnError)
	flags.Bool("container", false, "run in prepared name spaces")
	text := flags.String("cmdline", "", "what a machine has on its kernel command line")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	logger := bootlog.ToStderr()
	var action power.Action
	start := time.Now()
	err := guard.Call(func() (err error) {
		action, err = system.Run(context.Background(), system.Options{
			Container: true, Line: cmdline.Parse(*text), Log: logger, Signals: listen(),
			Since: func() time.Duration { return time.Since(start) },
		})
		return err
	})
	switch {
	case err != nil:
		logger.Print(emergency.Screen("the container", err))
		return exitFailed
	case action == power.Reboot:
		return exitReboot
	}
	return exitPowerOff
}

// ask has the running init stop the node. halt stops for good, and that is what poweroff does.
func ask(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	verb := initctl.VerbPowerOff
	if name == "reboot" {
		verb = initctl.VerbReboot
	}
	if err := (initctl.Client{Path: initctl.Path}).Do(ctx, initctl.Request{Verb: verb}); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return errors.New("only root may do that")
		}
		return fmt.Errorf("ask init: %w", err)
	}
	return nil
}
