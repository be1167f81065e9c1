package debian

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const digest = "9f5783fa48239e42260d41846fbc6c8b19c233251063524456096195660eaa09"

func TestParseMirrors(t *testing.T) {
	lists := func(path string) ([]byte, error) {
		if path == "/etc/apt/mirrors/debian.list" || path == "///etc/apt/mirrors/debian.list" {
			return []byte("# as installed\nhttps://mirror.example/debian priority:1\nhttps://second.example/debian\n"), nil
		}
		return nil, fs.ErrNotExist
	}
	for _, tt := range []struct {
		name, lines string
		want        mirrors
	}{
		{"none", "", defaultMirrors},
		{"a mirror of its own", "https://mirror.example/debian/ bookworm\nhttps://mirror.example/debian/ bookworm-updates\nhttps://mirror.example/sec bookworm-security\n",
			mirrors{"https://mirror.example/debian", "https://mirror.example/sec"}},
		{"other repositories", "https://other.example/node nodistro\nhttps://other.example/apt cloud-bookworm\n", defaultMirrors},
		{"backports only are no main archive", "https://mirror.example/b bookworm-backports\n", defaultMirrors},
		{"old name of security", "https://mirror.example/sec buster/updates\nhttps://mirror.example/s bullseye-security/updates\n",
			mirrors{defaultMirrors.main, "https://mirror.example/s"}},
		{"a cloud image's list of mirrors", "mirror+file:/etc/apt/mirrors/debian.list/ bookworm\n",
			mirrors{"https://mirror.example/debian", defaultMirrors.security}},
		{"the same with slashes", "mirror+file:///etc/apt/mirrors/debian.list trixie\n",
			mirrors{"https://mirror.example/debian", defaultMirrors.security}},
		{"a list that is gone", "mirror+file:/etc/apt/mirrors/none.list/ bookworm\n", defaultMirrors},
		{"installed from a CD", "cdrom://[Debian 12]/ bookworm\nhttps://mirror.example/debian/ bookworm\n",
			mirrors{"https://mirror.example/debian", defaultMirrors.security}},
	} {
		if got := parseMirrors(tt.lines, lists); got != tt.want {
			t.Errorf("%s: parseMirrors = %+v; want %+v", tt.name, got, tt.want)
		}
	}
}

func TestParseURIs(t *testing.T) {
	pkgs, err := parseURIs("'http://mirror.example/pool/b/busybox_1.37.0-6%2bb9_amd64.deb' busybox_1%3a1.37.0-6+b9_amd64.deb 484988 SHA256:" + digest + "\n")
	if err != nil {
		t.Fatal(err)
	}
	want := Package{Name: "busybox", Version: "1:1.37.0-6+b9", Arch: "amd64", SHA256: digest, uri: "http://mirror.example/pool/b/busybox_1.37.0-6%2bb9_amd64.deb"}
	if len(pkgs) != 1 || pkgs[0] != want {
		t.Errorf("parseURIs = %+v; want %+v", pkgs, want)
	}
	for _, bad := range []string{
		"Reading package lists...",
		"'http://mirror.example/a_1_amd64.deb' a_1_amd64.deb 1 MD5Sum:8c82dcf89447f04e600379a1a1871f3b",
		"'http://mirror.example/a_1_amd64.deb' a_1_amd64.deb 1 SHA256:12",
		"'http://mirror.example/a_1_amd64.deb' ..%2fa_1_amd64.deb 1 SHA256:" + digest,
		"'http://mirror.example/a.deb' a.deb 1 SHA256:" + digest,
	} {
		if pkgs, err := parseURIs(bad); err == nil {
			t.Errorf("parseURIs(%q) = %+v; want an error", bad, pkgs)
		}
	}
}

func TestParseSources(t *testing.T) {
	got := parseSources([]byte("Package: a\nSource: b (1.2)\nSHA256: 01\n\nPackage: c\nSHA256: 02\n\n"))
	if len(got) != 2 || got["01"] != "b (1.2)" || got["02"] != "" {
		t.Errorf("parseSources = %q", got)
	}
}

func TestVerify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := verify(path, digest); err == nil {
		t.Error("verify takes a file of another digest")
	}
}

func unpackEntries(t *testing.T, dir string, entries ...tar.Header) error {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Size = 0
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := mergeUsr(root, "amd64"); err != nil {
		t.Fatal(err)
	}
	return unpackTar(root, tar.NewReader(&b))
}

func TestUnpackMergesUsrAndDropsSetID(t *testing.T) {
	dir := t.TempDir()
	err := unpackEntries(t, dir,
		tar.Header{Typeflag: tar.TypeDir, Name: "./sbin/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "./sbin/tool", Mode: 0o4755},
		tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/same", Linkname: "./usr/sbin/tool"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./usr/sbin/tool", Mode: 0o755},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/sbin/tool", "usr/bin/same"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode() != 0o755 {
			t.Errorf("%s has mode %v; want 0755", name, info.Mode())
		}
	}
	if info, err := os.Lstat(filepath.Join(dir, "sbin")); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("sbin is no link any more: %v, %v", info, err)
	}
}

// TestUnpackStaysInside gives unpackTar what a forged package could hold.
func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"through a link": {
			{Typeflag: tar.TypeSymlink, Name: "./out", Linkname: "../outside"},
			{Typeflag: tar.TypeReg, Name: "./out/file", Mode: 0o644},
		},
		"through an absolute link": {
			{Typeflag: tar.TypeSymlink, Name: "./out", Linkname: os.TempDir()},
			{Typeflag: tar.TypeReg, Name: "./out/cairn-escaped", Mode: 0o644},
		},
		"hard link": {{Typeflag: tar.TypeLink, Name: "./file", Linkname: "../outside/secret"}},
		"device":    {{Typeflag: tar.TypeBlock, Name: "./disk", Mode: 0o600}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			inside, outside := filepath.Join(top, "inside"), filepath.Join(top, "outside")
			for _, d := range []string{inside, outside} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unpackEntries(t, inside, entries...); err == nil {
				t.Error("unpacked; want an error")
			}
			left, err := os.ReadDir(outside)
			if err != nil || len(left) != 1 {
				t.Errorf("outside holds %v, %v; want only the secret", left, err)
			}
		})
	}
}

func TestUnpackDotsStayInside(t *testing.T) {
	top := t.TempDir()
	inside := filepath.Join(top, "inside")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unpackEntries(t, inside, tar.Header{Typeflag: tar.TypeReg, Name: "./../../file", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(inside, "file")); err != nil {
		t.Error(err)
	}
}

func TestSplitNames(t *testing.T) {
	wanted, without := splitNames([]string{"busybox", "perl-base-", "libc6"})
	if strings.Join(wanted, " ") != "busybox libc6" || strings.Join(without, " ") != "perl-base" {
		t.Errorf("splitNames = %v, %v", wanted, without)
	}
}
