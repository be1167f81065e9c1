package chaos

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/store/chaos/nodes"
)

// number reads an environment variable.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// runs carries out full runs in the chaos lane, from seed 1 on, and elsewhere
// brief ones of the seeds that are named.
func runs(t *testing.T, target Target, count int, full uint64, brief ...uint64) {
	if err := nodes.Available(); errors.Is(err, nodes.ErrUnavailable) {
		t.Skip(err)
	}
	length, seeds := 6*time.Second, brief
	asked := os.Getenv("CAIRN_CHAOS_SEED")+os.Getenv("CAIRN_CHAOS_RUNS") != ""
	if asked || os.Getenv("CAIRN_LANE") == "chaos" {
		length, seeds = 12*time.Second, nil
		first := number(t, "CAIRN_CHAOS_SEED", 1)
		for seed := range number(t, "CAIRN_CHAOS_RUNS", full) {
			seeds = append(seeds, first+seed)
		}
	}
	output := os.Getenv("CAIRN_CHAOS_OUTPUT")
	if output == "" {
		output = filepath.Join(os.TempDir(), "cairn-chaos")
	}
	name := t.Name()
	for _, seed := range seeds {
		t.Run("seed="+strconv.FormatUint(seed, 10), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), length+2*recovery+2*startPatience)
			defer cancel()
			r, err := Run(ctx, Options{
				Target: target, Seed: seed, Nodes: count, Length: length,
				Dir: t.TempDir(), Output: filepath.Join(output, name), Keep: os.Getenv("CAIRN_CHAOS_KEEP") != "",
			})
			t.Logf("%s\n%s", r, strings.Join(r.Events, "\n"))
			for _, p := range r.Problems {
				t.Error(p)
			}
			for _, exit := range r.Exits {
				// etcd may panic on a full disk; the store must not, ever.
				if _, reference := target.(etcdTarget); !reference && !strings.Contains(exit, "exit status 1") {
					t.Errorf("%s: see %s", exit, r.Output)
				}
			}
			if err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("everything recorded is in %s; replay: CAIRN_CHAOS_SEED=%d CAIRN_CHAOS_RUNS=1 ./build.sh test chaos --run %s", r.Output, seed, name)
			}
		})
	}
}

// TestEtcd proves the checker: it must find nothing wrong with etcd.
func TestEtcd(t *testing.T) { runs(t, etcdTarget{}, 3, 5, 90) }
