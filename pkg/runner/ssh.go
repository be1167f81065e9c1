package runner

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Shell runs commands on a machine as root over SSH, with a key made for it.
type Shell struct {
	addr   string
	signer ssh.Signer

	hostKey []byte // of the first connection; every later one must show the same
}

// newKey makes an ed25519 key, writes it to path in OpenSSH's format, for the
// ssh command as well, and returns its authorized_keys line.
func newKey(path string) (authorized string, err error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "cairn run")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// readKey reads what newKey wrote.
func readKey(path string) (ssh.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return signer, nil
}

// checkHostKey trusts the first key that it sees: the machine makes its key
// at its first boot, so there is nothing older to compare with.
func (s *Shell) checkHostKey(_ string, _ net.Addr, key ssh.PublicKey) error {
	seen := key.Marshal()
	if s.hostKey != nil && !bytes.Equal(s.hostKey, seen) {
		return errors.New("the machine's SSH host key has changed")
	}
	s.hostKey = seen
	return nil
}

// Run runs a command line and returns what it printed on standard output.
// Its error holds what it printed on standard error.
func (s *Shell) Run(ctx context.Context, line string) (string, error) {
	dialer := net.Dialer{Timeout: 30 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(conn, s.addr, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(s.signer)}, HostKeyCallback: s.checkHostKey, Timeout: 60 * time.Second,
	})
	if err != nil {
		return "", fmt.Errorf("ssh %s: %w", s.addr, err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", fmt.Errorf("ssh %s: %w", s.addr, err)
	}
	defer session.Close()
	var stdout, stderr bytes.Buffer
	session.Stdout, session.Stderr = &stdout, &stderr
	if err := session.Run(line); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
