package system

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/machine/stamp"
)

// pair is what a certificate's file holds: the certificate and its key.
func pair(t *testing.T, notBefore time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notBefore.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("secret")}))
}

func TestFloors(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2027, 1, n, 12, 0, 0, 0, time.UTC) }
	for name, tt := range map[string]struct {
		files map[string]string
		want  time.Time
		why   string
		bad   bool
	}{
		"nothing":   {nil, time.Time{}, "", false},
		"the stamp": {map[string]string{stamp.Path: "2027-01-09T12:00:00Z\n", "var/lib/cairn/server/tls/a.pem": pair(t, day(3))}, day(9), "ran last", false},
		"a certificate of a server": {map[string]string{
			stamp.Path: "2027-01-02T12:00:00Z\n", "var/lib/cairn/server/tls/a.pem": pair(t, day(3)), "var/lib/cairn/server/tls/b.crt": pair(t, day(4)) + pair(t, day(1)),
			"var/lib/cairn/server/tls/junk.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "var/lib/cairn/server/tls/service-account.key": "x",
		}, day(4), "b.crt became valid", false},
		"a certificate of an agent": {map[string]string{"var/lib/cairn/node/tls/kubelet-client.pem": pair(t, day(5))}, day(5), "kubelet-client.pem became valid", false},
		"a damaged stamp":           {map[string]string{stamp.Path: "\x00\x00", "var/lib/cairn/node/tls/a.pem": pair(t, day(5))}, day(5), "a.pem", true},
	} {
		all, err := floors(tree(t, tt.files))
		if (err != nil) != tt.bad {
			t.Errorf("%s: error %v; want one: %v", name, err, tt.bad)
		}
		to, behind := newest(day(1).AddDate(-50, 0, 0), all)
		if !to.at.Equal(tt.want) || !strings.Contains(to.why, tt.why) || behind == tt.want.IsZero() {
			t.Errorf("%s: newest = %v, %v; want %v because of %q", name, to, behind, tt.want, tt.why)
		}
		if _, behind := newest(day(30), all); behind {
			t.Errorf("%s: a clock that is ahead would be set back", name)
		}
	}
}

// TestAdvanceClockInContainer: there the clock is the host's, and stays what it is.
func TestAdvanceClockInContainer(t *testing.T) {
	m := &machine{opt: Options{Container: true}, log: log.New(io.Discard, "", 0)}
	if err := m.advanceClock(floor{time.Now().AddDate(10, 0, 0), "tomorrow"}); err != nil {
		t.Fatal(err)
	}
	if now := time.Now(); now.Year() > 2100 {
		t.Errorf("the clock was set to %v", now)
	}
}
