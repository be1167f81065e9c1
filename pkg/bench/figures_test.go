package bench

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		figure Figure
		ok     bool
	}{
		{Figure{Cairn: 10, Peer: 10}, true},
		{Figure{Cairn: 10, Peer: 10, Budget: AtLeastPeer(1)}, true},
		{Figure{Cairn: 9, Peer: 10, Budget: AtLeastPeer(1)}, false},
		{Figure{Cairn: 10, Peer: 10, Budget: AtMostPeer(1)}, true},
		{Figure{Cairn: 11, Peer: 10, Budget: AtMostPeer(1)}, false},
		{Figure{Cairn: 90, Peer: 50, Budget: AtMost(90)}, true},
		{Figure{Cairn: 90.1, Peer: 500, Budget: AtMost(90)}, false},
		{Figure{Cairn: 9, Peer: math.NaN(), Budget: AtLeastPeer(1)}, false},
		{Figure{Cairn: 9, Peer: math.NaN(), Budget: AtMostPeer(1)}, false},
		{Figure{Cairn: math.NaN(), Peer: 9, Budget: AtMost(90)}, false},
	} {
		if got := tt.figure.OK(); got != tt.ok {
			t.Errorf("%v with budget %q: ok = %v; want %v", tt.figure, tt.figure.Budget, got, tt.ok)
		}
	}
}

func TestReport(t *testing.T) {
	r := Report{Peer: "etcd", Notes: []string{"one"}, Figures: []Figure{
		{Name: "writes", Unit: "1/s", Cairn: 50, Peer: 100, Budget: AtLeastPeer(1)},
		{Name: "idle", Unit: "s", Cairn: 3, Peer: math.NaN()},
	}}
	path := filepath.Join(t.TempDir(), "new", "r.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Figures []map[string]any
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []map[string]any{
		{"name": "writes", "unit": "1/s", "cairn": 50.0, "peer": 100.0, "ratio": 0.5, "budget": "≥ 1x", "ok": false},
		{"name": "idle", "unit": "s", "cairn": 3.0, "peer": nil, "ratio": nil, "budget": "", "ok": true},
	} {
		for key, value := range want {
			if have, present := got.Figures[i][key]; !present || have != value {
				t.Errorf("figure %d: %s = %v, %v; want %v", i, key, have, present, value)
			}
		}
	}
	var table bytes.Buffer
	if err := r.Print(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MISSED", "0.50", "note: one", "budgets missed: 1"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, table.String())
		}
	}
}
