package binaries

import "fmt"

// target is an architecture as Go and the C compiler know it.
type target struct {
	goarch, goarm string
	triplet       string // GNU's, and the prefix of the compiler's name
}

var targets = map[string]target{
	"amd64": {goarch: "amd64", triplet: "x86_64-linux-gnu"},
	"arm64": {goarch: "arm64", triplet: "aarch64-linux-gnu"},
	"armhf": {goarch: "arm", goarm: "7", triplet: "arm-linux-gnueabihf"},
}

func targetOf(arch string) (target, error) {
	t, ok := targets[arch]
	if !ok {
		return target{}, fmt.Errorf("architecture %q: want amd64, arm64 or armhf", arch)
	}
	return t, nil
}

func (t target) goEnv() []string {
	return []string{"GOARCH=" + t.goarch, "GOARM=" + t.goarm, "GOAMD64=v1"}
}
