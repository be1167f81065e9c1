package runner

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/build/image"
	"github.com/cairn-os/cairn/pkg/nodens"
)

func TestMain(m *testing.M) {
	nodens.Child() // a machine in namespaces begins as a copy of this program
	os.Exit(m.Run())
}

// builtImage returns the image that the lane was started with.
func builtImage(t *testing.T) *image.Output {
	t.Helper()
	built, err := image.Load(os.Getenv("CAIRN_IMAGES"))
	if err != nil {
		t.Fatal(err)
	}
	return built
}

// within returns a context for a step that must not take longer than d.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// check follows m to a served page and logs the timeline.
func check(ctx context.Context, t *testing.T, m Machine, built *image.Output, dir string) {
	t.Helper()
	var out bytes.Buffer
	if err := Check(ctx, m, built, dir, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("%s:\n%s", m.Name(), out.String())
}
