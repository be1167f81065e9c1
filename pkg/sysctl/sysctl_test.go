package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	tests := []struct{ key, want string }{
		{"net.ipv4.ip_forward", "net/ipv4/ip_forward"},
		{"net/ipv4/conf/eth0.7/forwarding", "net/ipv4/conf/eth0.7/forwarding"},
		{"net.ipv4.conf.eth0/7.forwarding", "net/ipv4/conf/eth0.7/forwarding"},
		{"kernel.panic", "kernel/panic"},
		{"", ""}, {"..", ""}, {"../etc/passwd", ""}, {"/kernel/panic", ""}, {"a..b", ""}, {"kernel.", ""},
	}
	for _, tt := range tests {
		got, err := Path("", tt.key)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Path(%q) = %q, %v; want %q", tt.key, got, err, tt.want)
		}
	}
}

func FuzzPath(f *testing.F) {
	f.Add("net.ipv4.ip_forward")
	f.Add("net/ipv4/../../..")
	f.Fuzz(func(t *testing.T, key string) {
		got, err := Path("/proc/sys", key)
		if err == nil && !strings.HasPrefix(got, "/proc/sys/") {
			t.Errorf("Path(%q) = %q, outside of the root", key, got)
		}
	})
}

func TestSetAll(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "kernel/panic")
	if err := os.WriteFile(file, []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := SetAll(root, []Setting{
		{Key: "kernel.gone", Value: "1"},
		{Key: "kernel.module", Value: "1", Optional: true},
		{Key: "kernel.panic", Value: "10"},
	})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "kernel.gone") || strings.Contains(err.Error(), "module") {
		t.Errorf("SetAll error = %v; want one about kernel.gone only", err)
	}
	if got, _ := os.ReadFile(file); string(got) != "10\n" {
		t.Errorf("kernel.panic = %q; want 10", got)
	}
	if _, err := os.Stat(filepath.Join(root, "kernel/gone")); err == nil {
		t.Error("a missing parameter was made as a file")
	}
}

func TestDefaults(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Defaults() {
		path, err := Path("/proc/sys", s.Key)
		if err != nil {
			t.Error(err)
		}
		if seen[s.Key] {
			t.Errorf("%s is there twice", s.Key)
		}
		seen[s.Key] = true
		if s.Why == "" || s.Value == "" {
			t.Errorf("%s lacks a value or a reason", s.Key)
		}
		if _, err := os.Stat(path); err != nil && !s.Optional {
			t.Logf("%s: this kernel has no such parameter", s.Key)
		}
	}
}
