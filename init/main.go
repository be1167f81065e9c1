// Command init is PID 1 of a Cairn node, in both of its stages, and the commands reboot, poweroff and halt.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	switch name := filepath.Base(os.Args[0]); {
	case name == "reboot", name == "poweroff", name == "halt":
		if err := ask(name); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
	case len(os.Args) > 1 && os.Args[1] == "--container":
		os.Exit(container(os.Args[1:]))
	case os.Getpid() == 1:
		machine()
	default:
		fmt.Fprintln(os.Stderr, "usage: init runs as PID 1, or in prepared name spaces: init --container --cmdline <text>")
		os.Exit(2)
	}
}
