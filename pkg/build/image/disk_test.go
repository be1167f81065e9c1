package image

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/cache"
	"github.com/cairn-os/cairn/pkg/build/progress"
)

func TestOneBuildAtATime(t *testing.T) {
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &Builder{o: Options{Target: "amd64"}, cache: c}
	ctx := progress.NewContext(t.Context(), progress.New(io.Discard))
	unlock, err := b.lock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := b.lock(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second build: %v; want it to wait", err)
	}
	unlock()
	unlock, err = b.lock(ctx)
	if err != nil {
		t.Fatalf("a build after the first: %v", err)
	}
	unlock()
}
