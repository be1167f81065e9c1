package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServeExternal sees who serves with which configuration.
func TestServeExternal(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		served     bool
		want       string // part of the error
	}{
		{"nothing", "# nothing\n", false, ""},
		{"no datastore", "hostname: a\n", false, ""},
		{"etcd", "cairn: {datastore: {endpoint: 'https://a:2379'}}\n", true, "no store is needed"},
		{"bad", "cairn: {datastore: {endpoint: 'sqlite://hunter2'}}\n", true, "cairn.datastore.endpoint: want an endpoint"},
		{"no such file", "cairn: {datastore: {endpoint: 'postgres://u:hunter2@db/x', ca_file: /none}}\n", true, "certificate file /none"},
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		served := true
		c, err := loadConfig(path)
		if err == nil {
			served, err = serveExternal(t.Context(), c.Cairn.Datastore, filepath.Join(t.TempDir(), "s"), slog.New(slog.DiscardHandler))
		}
		if served != tt.served || (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: served %v, %v; want %v, %q", tt.name, served, err, tt.served, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the password is in %v", tt.name, err)
		}
	}
	if c, err := loadConfig("/none"); err != nil || c.Cairn.Datastore.Endpoint != "" {
		t.Errorf("without a configuration: %v, %v; want an empty one", c, err)
	}
}
