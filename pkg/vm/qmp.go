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
	return m.commandWith(ctx, name, nil)
}

// commandWith runs a command of QMP with its arguments.
func (m *Machine) commandWith(ctx context.Context, name string, arguments any) error {
	if err := qmp(ctx, filepath.Join(m.dir, "qmp"), name, arguments); err != nil {
		return fmt.Errorf("machine: %s: %w", name, err)
	}
	return nil
}

func qmp(ctx context.Context, socket, name string, arguments any) error {
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
	if err := call(conn, in, "qmp_capabilities", nil); err != nil {
		return err
	}
	return call(conn, in, name, arguments)
}

func call(conn net.Conn, in *bufio.Reader, execute string, arguments any) error {
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{execute, arguments}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
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
