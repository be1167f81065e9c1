package release_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-os/cairn/pkg/release"
)

func manifest() release.Manifest {
	return release.Manifest{
		Info:   release.Info{Version: "0.2.0-rc.1", Kubernetes: "v1.36.4", Kernel: "6.12.1", BuildTime: 1767225600},
		Target: "amd64", From: "0.1.0", Config: release.ConfigSchema,
		Images: []release.Image{
			{Name: "boot", Size: 40 << 20, Data: 40 << 20, SHA256: strings.Repeat("0a", 32), Index: "amd64/0.2.0-rc.1/boot.caibx"},
			{
				Name: "root", Size: 310 << 20, Data: 300 << 20, SHA256: strings.Repeat("1b", 32), Index: "amd64/0.2.0-rc.1/root.caibx",
				RootHash: strings.Repeat("2c", 32),
			},
		},
	}
}

func encode(t *testing.T, e interface{ Encode() ([]byte, error) }) string {
	t.Helper()
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestManifestRoundTrip(t *testing.T) {
	want := manifest()
	got, err := release.DecodeManifest([]byte(encode(t, want)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.Image("root").Size != 310<<20 || got.Image("else") != (release.Image{}) {
		t.Errorf("Image: %+v, %+v", got.Image("root"), got.Image("else"))
	}
}

// TestManifestOfANewerRelease: what it has more does not stop an older machine.
func TestManifestOfANewerRelease(t *testing.T) {
	text := strings.Replace(encode(t, manifest()), `"target"`, `"notes": {"a": [1, {"b": null}]}, "target"`, 1)
	text = strings.Replace(text, `"name": "boot"`, `"name": "boot", "more": true`, 1)
	got, err := release.DecodeManifest([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(manifest(), got); diff != "" {
		t.Error(diff)
	}
}

func TestBadManifest(t *testing.T) {
	good := encode(t, manifest())
	for _, c := range []struct{ name, old, new, want string }{
		{"empty", good, "", "cut off"},
		{"HTML", good, "<html>", "invalid character"},
		{"a list", good, "[]", "not a JSON object"},
		{"null", good, "null", "not a JSON object"},
		{"nothing in it", good, "{}", "version"},
		{"cut off", "]\n}", "", "cut off"},
		{"data behind", "]\n}", "]\n} {}", "more data"},
		{"too long", "]\n}", "]\n}" + strings.Repeat(" ", release.MaxManifestSize), "longer"},
		{"not UTF-8", "6.12.1", "\xff", "UTF-8"},
		{"deep", `"from": "0.1.0"`, `"x": ` + strings.Repeat("[", 40) + strings.Repeat("]", 40), "nested"},
		{"twice", `"from"`, `"target": "amd64", "from"`, "comes twice"},
		{"twice in other case", `"from"`, `"Target": "amd64", "from"`, "comes twice"},
		{"twice inside", `"name": "boot"`, `"name": "boot", "name": "boot"`, "comes twice"},
		{"version", `"version": "0.2.0-rc.1"`, `"version": "0.2"`, `version "0.2"`},
		{"version null", `"version": "0.2.0-rc.1"`, `"version": null`, `version ""`},
		{"version leads elsewhere", `"version": "0.2.0-rc.1"`, `"version": "../../x"`, "version"},
		{"kubernetes", "v1.36.4", "1.36.4", "kubernetes"},
		{"kernel", "6.12.1", "6.12 1", "kernel"},
		{"build time before 1970", "1767225600", "-1", "build_time"},
		{"build time in milliseconds", "1767225600", "1767225600000", "build_time"},
		{"target", `"amd64",`, `"../amd64",`, "target"},
		{"no target", `"amd64",`, `"",`, "target"},
		{"from", `"from": "0.1.0"`, `"from": "v1"`, "from"},
		{"from above", `"from": "0.1.0"`, `"from": "0.2.0"`, "above"},
		{"config", `"config": 1`, `"config": 0`, "config"},
		{"config no number", `"config": 1`, `"config": "1"`, "config"},
		{"unknown image", `"name": "boot"`, `"name": "firmware"`, "version in between"},
		{"image twice", `"name": "boot"`, `"name": "root"`, `image "root"`},
		{"size no sectors", `"size": 41943040`, `"size": 41943041`, "size"},
		{"size negative", `"size": 41943040`, `"size": -512`, "size"},
		{"size of a float", `"size": 41943040`, `"size": 1.5`, "size"},
		{"size beyond numbers", `"size": 41943040`, `"size": 9223372036854775808`, "size"},
		{"size beyond disks", `"size": 41943040`, `"size": 9223372036854775296`, "size"},
		{"hash in capitals", strings.Repeat("0a", 32), strings.Repeat("0A", 32), "sha256"},
		{"hash short", strings.Repeat("0a", 32), "0a", "sha256"},
		{"index leads elsewhere", "amd64/0.2.0-rc.1/boot", "amd64/../../boot", "index"},
		{"index absolute", "amd64/0.2.0-rc.1/boot", "/boot", "index"},
		{"index is a URL", "amd64/0.2.0-rc.1/boot", "http://x/boot", "index"},
		{"data of boot", `"data": 41943040`, `"data": 41942528`, "covers all"},
		{"data of root", `"data": 314572800`, `"data": 314572801`, "data"},
		{"data above size", `"data": 314572800`, `"data": 3145728000`, "data"},
		{"no root hash", strings.Repeat("2c", 32), "", "root_hash"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatalf("%q is not in the manifest", c.old)
			}
			if _, err := release.DecodeManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("DecodeManifest = %v; want an error with %q", err, c.want)
			}
		})
	}
	m := manifest()
	m.Images = m.Images[:1]
	if _, err := m.Encode(); err == nil || !strings.Contains(err.Error(), `image "root": missing`) {
		t.Errorf("Encode without root = %v", err)
	}
}

func TestChannel(t *testing.T) {
	for _, want := range []release.Channel{{Version: "1.2.3"}, {Version: "1.2.3", Floor: "1.0.0"}, {Version: "1.2.3", Floor: "1.2.3"}} {
		got, err := release.DecodeChannel([]byte(encode(t, want)))
		if err != nil || got != want {
			t.Errorf("DecodeChannel(Encode(%+v)) = %+v, %v", want, got, err)
		}
	}
	for _, c := range []struct{ text, want string }{
		{`{"floor": "1.0.0"}`, "version"},
		{`{"version": "1.2.3", "floor": "1.2.4"}`, "above"},
		{`{"version": "1.2.3", "floor": "x"}`, "floor"},
		{`{"version": "1.2.3"}{}`, "more data"},
		{`{"version": "1.2.3", "x": "` + strings.Repeat("y", release.MaxChannelSize) + `"}`, "longer"},
		{`<!DOCTYPE html>`, "invalid character"},
	} {
		if _, err := release.DecodeChannel([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("DecodeChannel(%.40s) = %v; want an error with %q", c.text, err, c.want)
		}
	}
}

func TestPaths(t *testing.T) {
	got := []string{
		release.ManifestPath("amd64", "1.2.3-rc.1"), release.IndexPath("amd64", "1.2.3", release.RootImage), release.ChannelPath("amd64", "stable"),
	}
	want := []string{"amd64/1.2.3-rc.1/release.json", "amd64/1.2.3/root.caibx", "amd64/stable.json"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, p := range got {
		if err := release.CheckPath(p); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", `a\b`, "a?b", "a%2fb", "a b", "a:b", strings.Repeat("a", 257)} {
		if err := release.CheckPath(p); err == nil {
			t.Errorf("CheckPath(%q) = nil; want an error", p)
		}
	}
	for _, n := range []string{"", "-a", "A", "a.b", "a/b", "..", "ä", strings.Repeat("a", 33)} {
		if err := release.CheckName(n); err == nil {
			t.Errorf("CheckName(%q) = nil; want an error", n)
		}
	}
}

func FuzzManifest(f *testing.F) {
	data, err := manifest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version": "1.2.3", "images": [{"name": "boot", "size": 512}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := release.DecodeManifest(data)
		if err != nil {
			return
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", m, err)
		}
		again, err := release.DecodeManifest(text)
		if err != nil || !cmp.Equal(m, again) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzChannel(f *testing.F) {
	f.Add([]byte(`{"version": "1.2.3", "floor": "1.0.0"}`))
	f.Add([]byte(`{"version": "0.1.0-dev"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := release.DecodeChannel(data)
		if err != nil {
			return
		}
		text, err := c.Encode()
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", c, err)
		}
		if again, err := release.DecodeChannel(text); err != nil || again != c {
			t.Errorf("%+v became %+v, %v", c, again, err)
		}
	})
}
