package releasedir

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/cairn-os/cairn/pkg/build/signing"
	"github.com/cairn-os/cairn/pkg/chunk"
	"github.com/cairn-os/cairn/pkg/release"
)

// directory is a release directory as it is. Its signatures do not count here:
// chunks are checked by their indexes, and a wrong base only makes deltas that
// no machine can use.
type directory struct {
	dir     string
	targets *metadata.Metadata[metadata.TargetsType] // nil: an empty directory
}

func openDirectory(dir string) (directory, error) {
	targets, err := signing.ReadTargets(dir)
	return directory{dir, targets}, err
}

// paths returns the target paths in order.
func (d directory) paths() []string {
	if d.targets == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(d.targets.Signed.Targets))
}

// target returns the content of a target file, nil if there is none.
func (d directory) target(name string) ([]byte, error) {
	return signing.ReadTarget(d.dir, d.targets, name)
}

// filesOf names the files of a version, with no content.
func (d directory) filesOf(target, version string) map[string][]byte {
	files := map[string][]byte{}
	for _, p := range d.paths() {
		if path.Dir(p) == path.Join(target, version) {
			files[p] = nil
		}
	}
	return files
}

// newest returns the newest version of target other than not, "" if none.
func (d directory) newest(target, not string) (newest string) {
	for _, p := range d.paths() {
		version := path.Base(path.Dir(p))
		if p == release.ManifestPath(target, version) && version != not && release.Compare(version, newest) > 0 {
			newest = version
		}
	}
	return newest
}

func (d directory) manifest(target, version string) (m release.Manifest, ok bool, err error) {
	text, err := d.target(release.ManifestPath(target, version))
	if err != nil || text == nil {
		return m, false, err
	}
	m, err = release.DecodeManifest(text)
	return m, true, err
}

func (d directory) channel(target, name string) (release.Channel, error) {
	text, err := d.target(release.ChannelPath(target, name))
	if err != nil || text == nil {
		return release.Channel{}, err
	}
	return release.DecodeChannel(text)
}

// mayReplace refuses another release under the version of one that is out.
func (d directory) mayReplace(m release.Manifest) error {
	old, there, err := d.manifest(m.Target, m.Version)
	if err != nil || !there || strings.Contains(m.Version, "-") {
		return err
	}
	for _, i := range m.Images {
		if old.Image(i.Name).SHA256 != i.SHA256 {
			return fmt.Errorf("version %s is there with another %s image: machines that have it would never get this one; give it a new version", m.Version, i.Name)
		}
	}
	return nil
}

// base is a version that machines come from.
type base struct {
	directory
	manifest release.Manifest
	images   map[string]*baseImage
	ids      map[chunk.ID]bool
}

// baseImage is an image of it, in memory.
type baseImage struct {
	base    chunk.Base
	content []byte
	similar similarity
}

// bases opens the versions that deltas are made against, each once.
func (o Options) bases(before directory) ([]*base, error) {
	var all []*base
	seen := map[string]bool{o.Info.Version: true}
	for n, dir := range append(slices.Clone(o.Bases), o.Dir) {
		d, err := openDirectory(dir)
		if err != nil {
			return nil, err
		}
		version := d.newest(o.Target, o.Info.Version)
		if version == "" && n < len(o.Bases) {
			return nil, fmt.Errorf("base %s: no release for %s other than %s in it", dir, o.Target, o.Info.Version)
		}
		if version == "" || seen[version] {
			continue
		}
		seen[version] = true
		m, _, err := d.manifest(o.Target, version)
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", dir, err)
		}
		all = append(all, &base{directory: d, manifest: m, images: map[string]*baseImage{}})
	}
	return all, nil
}

// image puts an image of the base together.
func (b *base) image(name string) (*baseImage, error) {
	if i := b.images[name]; i != nil {
		return i, nil
	}
	m := b.manifest.Image(name)
	sum, err := digest(m.SHA256)
	if err != nil {
		return nil, err
	}
	index, err := b.index(m)
	if err != nil {
		return nil, err
	}
	content := make([]byte, 0, m.Data)
	codec, err := chunk.NewCodec()
	if err != nil {
		return nil, err
	}
	store, zeros := chunk.NewStore(b.dir), index.Zeros()
	for n, c := range index.Chunks {
		if zeros[n] {
			content = append(content, make([]byte, c.Size)...)
			continue
		}
		data, err := store.Get(codec, c)
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", b.dir, err)
		}
		content = append(content, data...)
	}
	i := &baseImage{base: chunk.Base{Version: b.manifest.Version, SHA256: sum}, content: content, similar: newSimilarity(content)}
	b.images[name] = i
	return i, codec.Close()
}

func (b *base) index(m release.Image) (chunk.Index, error) {
	data, err := b.target(m.Index)
	if err != nil {
		return chunk.Index{}, err
	}
	return chunk.DecodeIndex(data)
}

// chunks returns what a machine finds on its slot when it cuts it with p.
func (b *base) chunks(p chunk.Params) (map[chunk.ID]bool, error) {
	if b.ids != nil {
		return b.ids, nil
	}
	ids := map[chunk.ID]bool{}
	for _, m := range b.manifest.Images {
		i, err := b.image(m.Name)
		if err != nil {
			return nil, err
		}
		for c, err := range chunk.Split(bytes.NewReader(i.content), p) {
			if err != nil {
				return nil, err
			}
			ids[c.ID] = true
		}
	}
	b.ids = ids
	return ids, nil
}
