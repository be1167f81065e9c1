package release

import (
	"errors"
	"fmt"
)

// ConfigSchema is the number of the configuration's schema that this source
// tree reads and writes. It grows with a change after which an older release
// could not read what a newer one wrote.
const ConfigSchema = 1

// MaxManifestSize is the size of the largest Manifest in bytes.
const MaxManifestSize = 64 << 10

// The names of a release's images.
const (
	BootImage = "boot" // goes to CAIRN_BOOT_A or _B
	RootImage = "root" // goes to CAIRN_ROOT_A or _B
)

const (
	maxImageSize = 16 << 30
	sector       = 512  // of a disk: images are whole sectors
	verityBlock  = 4096 // of the verity tree: the root's data are whole blocks
	// maxBuildTime is the year 2200. A time beyond it is an error, and taken for
	// a time that was, would make every metadata expired.
	maxBuildTime = 7258118400
)

// Manifest is the signed file that describes one version of Cairn for one
// target. Its TUF target path is ManifestPath.
type Manifest struct {
	Info
	// Target is what the release runs on: "amd64".
	Target string `json:"target"`
	// From is the oldest version from which a machine may come here directly; ""
	// for any.
	From string `json:"from"`
	// Config is the number of the configuration's schema that this release
	// writes: its ConfigSchema.
	Config int `json:"config"`
	// Images are boot and root.
	Images []Image `json:"images"`
}

// Image describes what goes to one partition of a slot.
type Image struct {
	Name string `json:"name"` // BootImage or RootImage
	// Size is the number of bytes.
	Size int64 `json:"size"`
	// SHA256 is of all of the image, in hexadecimal.
	SHA256 string `json:"sha256"`
	// Index is the TUF target path of the list of its chunks.
	Index string `json:"index"`
	// Data is the number of bytes that the index covers, from the beginning. What
	// is left, of the root, is the verity tree, which the machine computes.
	Data int64 `json:"data"`
	// RootHash is that of the verity tree, in hexadecimal; "" of the boot image.
	RootHash string `json:"root_hash,omitempty"`
}

// DecodeManifest reads what Encode writes. Its caller compares Target and
// Version with what it asked for.
func DecodeManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := decode(data, MaxManifestSize, &m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if err := m.Check(); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

// Encode returns the file's text. It refuses what DecodeManifest would refuse.
func (m Manifest) Encode() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return encode(m)
}

// Image returns the image of that name; the zero Image when there is none.
func (m Manifest) Image(name string) Image {
	for _, i := range m.Images {
		if i.Name == name {
			return i
		}
	}
	return Image{}
}

// Check says what is wrong with m.
func (m Manifest) Check() error {
	if err := m.checkInfo(); err != nil {
		return err
	}
	if err := CheckName(m.Target); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if m.From != "" {
		if err := CheckVersion(m.From); err != nil {
			return fmt.Errorf("from: %w", err)
		}
		if Compare(m.From, m.Version) > 0 {
			return fmt.Errorf("from: version %s is above the release's own, %s", m.From, m.Version)
		}
	}
	if m.Config < 1 {
		return fmt.Errorf("config: schema number %d: want 1 or more", m.Config)
	}
	seen := map[string]bool{}
	for _, i := range m.Images {
		if err := i.check(); err != nil {
			return fmt.Errorf("image %q: %w", i.Name, err)
		}
		if seen[i.Name] {
			return fmt.Errorf("image %q: comes twice", i.Name)
		}
		seen[i.Name] = true
	}
	for _, name := range []string{BootImage, RootImage} {
		if !seen[name] {
			return fmt.Errorf("image %q: missing", name)
		}
	}
	return nil
}

func (m Manifest) checkInfo() error {
	if err := CheckVersion(m.Version); err != nil {
		return err
	}
	if _, err := parseKubernetes(m.Kubernetes); err != nil {
		return fmt.Errorf("kubernetes: version %q: %w", m.Kubernetes, err)
	}
	if m.Kernel == "" || len(m.Kernel) > maxVersion || !only(m.Kernel, identifier+"._+~") {
		return fmt.Errorf("kernel: version %q: want at most %d letters, digits and any of - . _ + ~", m.Kernel, maxVersion)
	}
	if m.BuildTime < 0 || m.BuildTime > maxBuildTime {
		return fmt.Errorf("build_time: %d: want seconds since 1970, before the year 2200", m.BuildTime)
	}
	return nil
}

func (i Image) check() error {
	switch {
	case i.Name != BootImage && i.Name != RootImage:
		return errors.New("this version of Cairn knows only boot and root: upgrade to a version in between first")
	case i.Size <= 0 || i.Size > maxImageSize || i.Size%sector != 0:
		return fmt.Errorf("size: %d: want a multiple of %d up to %d", i.Size, sector, int64(maxImageSize))
	case !isHex(i.SHA256, 32):
		return fmt.Errorf("sha256: %q: want 64 digits 0 to 9 and a to f", i.SHA256)
	}
	if err := CheckPath(i.Index); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if i.Name == BootImage {
		if i.Data != i.Size || i.RootHash != "" {
			return errors.New("data and root_hash: the index of boot covers all of it, and it has no verity tree")
		}
		return nil
	}
	if i.Data <= 0 || i.Data > i.Size || i.Data%verityBlock != 0 {
		return fmt.Errorf("data: %d of %d bytes: want a multiple of %d, no more than the size", i.Data, i.Size, verityBlock)
	}
	if !isHex(i.RootHash, 32) {
		return fmt.Errorf("root_hash: %q: want 64 digits 0 to 9 and a to f", i.RootHash)
	}
	return nil
}
