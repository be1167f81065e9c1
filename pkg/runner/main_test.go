package runner

import (
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

// testLog writes a machine's console and the timeline to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Helper()
	l.t.Logf("%s", p)
	return len(p), nil
}
