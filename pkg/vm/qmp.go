package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// command runs one command of QEMU's machine protocol on a connection of its
// own; QEMU serves one at a time.
// https://www.qemu.org/docs/master/interop/qmp-spec.html
func (m *Machine) command(ctx context.Context, name string) error {
	if err := qmp(ctx, filepath.Join(m.dir, "qmp"), name); err != nil {
		return fmt.Errorf("machine: %s: %w", name, err)
	}
	return nil
}

func qmp(ctx context.Context, socket, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	if _, err := in.ReadBytes('\n'); err != nil { // the greeting
		return err
	}
	for _, execute := range []string{"qmp_capabilities", name} {
		if err := call(conn, in, execute); err != nil {
			return err
		}
	}
	return nil
}

func call(conn net.Conn, in *bufio.Reader, execute string) error {
	if err := json.NewEncoder(conn).Encode(map[string]string{"execute": execute}); err != nil {
		return err
	}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		var reply struct {
			Return json.RawMessage `json:"return"`
			Event  string          `json:"event"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return err
		}
		switch {
		case reply.Error != nil:
			return errors.New(reply.Error.Desc)
		case reply.Event == "":
			return nil
		}
	}
}
