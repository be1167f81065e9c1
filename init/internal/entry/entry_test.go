package entry

import (
	"errors"
	"strings"
	"testing"

	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/verity"
)

const (
	part = "6c0a1d2e-0000-4000-8000-000000000002"
	hash = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	good = "panic=10 cairn.slot=b cairn.bootpart=" + part + " cairn.roothash=" + hash + " cairn.rootblocks=65536"
)

func TestParse(t *testing.T) {
	want := Entry{"b", part, verity.Root{Hash: hash, Blocks: 65536}}
	for _, text := range []string{good, strings.ToUpper(good[strings.Index(good, part):][:36]) + " " + good} {
		got, err := Parse(cmdline.Parse(text))
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	if got := want.RootName(); got != "CAIRN_ROOT_B" {
		t.Errorf("RootName() = %q; want CAIRN_ROOT_B", got)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ old, new string }{
		{"cairn.slot=b", "cairn.slot=c"}, {part, part[1:]}, {part, "/dev/sda"}, {"65536", "64k"}, {"65536", "-1"},
		{"65536", "0"}, {hash, hash[2:]}, {hash, "x" + hash[1:]},
	}
	for _, tt := range tests {
		text := strings.Replace(good, tt.old, tt.new, 1)
		if got, err := Parse(cmdline.Parse(text)); err == nil {
			t.Errorf("Parse(%q) = %+v; want an error", text, got)
		}
	}
	for _, key := range []string{"cairn.slot", "cairn.bootpart", "cairn.roothash", "cairn.rootblocks"} {
		text := strings.Replace(good, key, "x", 1)
		if _, err := Parse(cmdline.Parse(text)); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), key) {
			t.Errorf("Parse without %s: %v; want ErrMissing that names it", key, err)
		}
	}
}
