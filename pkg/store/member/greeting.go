package member

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// What dqlite sends first on a raft connection (transport.c and request.h of
// dqlite 1.18.6): the protocol's version, a message's header, and its body of
// the sender's ID and address. Numbers are little-endian, texts are padded
// with NUL to a multiple of 8 bytes.
const (
	protocolVersion = 1
	requestConnect  = 11 // DQLITE_REQUEST_CONNECT
	greetingHead    = 8 + 8
	// greetingWords is the length of the body in words of 8 bytes: the ID,
	// and a name of ours with its NUL.
	greetingWords = 1 + 3
	greetingSize  = greetingHead + greetingWords*8
	greetingLimit = 10 * time.Second
)

// readGreeting returns the beginning of a raft connection that the member from
// opened. What begins otherwise is refused: dqlite would serve a client on it,
// to whom it refuses nothing, or take raft's messages for those of the member
// that the greeting names, the leader for one.
func (b *bridges) readGreeting(conn net.Conn, from uint64) ([]byte, error) {
	defer context.AfterFunc(b.ctx, func() { _ = conn.Close() })()
	if err := conn.SetReadDeadline(time.Now().Add(greetingLimit)); err != nil {
		return nil, err
	}
	data := make([]byte, greetingSize)
	if _, err := io.ReadFull(conn, data); err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	id, err := parseGreeting(data)
	if err != nil {
		return nil, err
	}
	if id != from {
		return nil, fmt.Errorf("greeting: %s greets as %s", Name(from), Name(id))
	}
	return data, conn.SetReadDeadline(time.Time{})
}

// parseGreeting returns the sender's ID.
func parseGreeting(data []byte) (uint64, error) {
	if len(data) != greetingSize {
		return 0, fmt.Errorf("greeting of %d bytes: want %d", len(data), greetingSize)
	}
	version, words := binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint32(data[8:])
	if kind, schema := data[12], data[13]; version != protocolVersion || words != greetingWords || kind != requestConnect || schema != 0 {
		return 0, fmt.Errorf("greeting of version %d, type %d, schema %d, %d words: not raft's", version, kind, schema, words)
	}
	body := data[greetingHead:]
	id := binary.LittleEndian.Uint64(body)
	name, rest, found := bytes.Cut(body[8:], []byte{0})
	if !found || len(bytes.Trim(rest, "\x00")) != 0 {
		return 0, errors.New("greeting: malformed name")
	}
	named, err := ParseName(string(name))
	if err != nil {
		return 0, fmt.Errorf("greeting: %w", err)
	}
	if named != id {
		return 0, fmt.Errorf("greeting: id %016x named %s", id, name)
	}
	return id, nil
}
