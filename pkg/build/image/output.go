package image

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-os/cairn/pkg/release"
)

// Output names the files of a finished build. Those outside of the output
// directory lie in the cache: nobody may change them.
type Output struct {
	Disk       string `json:"disk"`            // the whole disk, raw and sparse
	Compressed string `json:"compressed_disk"` // the same as disk.img.zst; empty unless asked for
	Tree       string `json:"tree"`            // the unpacked root file system
	Root       string `json:"root"`            // its image with the dm-verity tree
	RootHash   string `json:"root_hash"`       // of that tree, in hexadecimal
	RootBlocks int64  `json:"root_blocks"`     // of the file system before it, of 4096 bytes
	Boot       string `json:"boot"`            // the image of a slot's boot partition
	Hello      string `json:"hello"`           // the demonstration's container image, a tar file
	HelloTag   string `json:"hello_tag"`       // its name
	KubeCtl    string `json:"kubectl"`         // a kubectl that runs on the build machine
	// Release is what was built.
	Release release.Info `json:"release"`
	// Summary tells a person what was built, how large it is and where.
	Summary string `json:"-"`
}

// outputFile keeps an Output for commands that use a build later.
const outputFile = "build.json"

func (o *Output) save(dir string) error {
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, outputFile), append(text, '\n'), 0o644)
}

// Load returns the Output of the build that left dir.
func Load(dir string) (*Output, error) {
	path := filepath.Join(dir, outputFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w (run ./build.sh image first)", err)
	}
	var o Output
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &o, nil
}
