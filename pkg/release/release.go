// Package release says what a release of Cairn is: the versions in a root file
// system, the signed files that describe a release, and the order of versions.
package release

import (
	"encoding/json"
	"fmt"
	"os"
)

// Path is where a root file system keeps its Info.
const Path = "/usr/lib/cairn/release.json"

// Version is the version of this source tree. A release's build sets it to the
// released version by the linker's -X.
var Version = "0.1.0-dev"

// Info describes a root file system.
type Info struct {
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	Kernel     string `json:"kernel"`
	// BuildTime is the time of the newest change in the sources, in seconds
	// since the epoch: the earliest that a correct clock can show.
	BuildTime int64 `json:"build_time"`
}

// Load reads the Info at path.
func Load(path string) (Info, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Info{}, fmt.Errorf("load release: %w", err)
	}
	var i Info
	if err := json.Unmarshal(data, &i); err != nil {
		return Info{}, fmt.Errorf("load release %s: %w", path, err)
	}
	return i, nil
}

// Encode returns the text that Load reads.
func (i Info) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode release: %w", err)
	}
	return append(data, '\n'), nil
}
