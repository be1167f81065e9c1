package module

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = `# Aliases extracted from modules themselves.
alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias usb:v0BDAp8153d*dc*dsc*dp*ic*isc*ip*in* r8152
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias acpi*:PNP0C0C:* button
alias of:N*T*Cbrcm,bcm2835-[ab]* bcm2835
alias fs-xfs xfs
alias virtio:d00000001v* virtio_net
alias virtio:d00000001v* virtio_net
alias bad:[ broken
`

func TestMatch(t *testing.T) {
	a, err := ParseAliases(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		alias string
		want  []string
	}{
		{"pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00", []string{"e1000e"}},
		{"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", []string{"ahci"}},
		{"usb:v0BDAp8153d3000dc00dsc00dp00ic08isc06ip50in00", []string{"r8152", "usb_storage"}},
		{"virtio:d00000001v00001AF4", []string{"virtio_net"}},
		{"of:NserialT(null)Cbrcm,bcm2835-aux", []string{"bcm2835"}},
		{"fs-xfs", []string{"xfs"}},
		{"fs-xf", nil}, {"", nil}, {"bad:[", nil}, {"pci", nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, a.Match(tt.alias)); diff != "" {
			t.Errorf("Match(%q) (-want +got):\n%s", tt.alias, diff)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add(sample, "pci:v00008086d000010D3")
	f.Fuzz(func(t *testing.T, file, alias string) {
		if a, err := ParseAliases(strings.NewReader(file)); err == nil {
			a.Match(alias)
		}
	})
}

// loader records what would be loaded; "broken" cannot be.
func loader(t *testing.T) (*Loader, *[]string) {
	t.Helper()
	a, err := ParseAliases(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	return &Loader{a, func(name, params string) error {
		if name == "r8152" {
			return errors.New("no firmware")
		}
		loaded = append(loaded, strings.TrimSpace(name+" "+params))
		return nil
	}}, &loaded
}

func TestColdplug(t *testing.T) {
	l, loaded := loader(t)
	sys := t.TempDir()
	for dir, alias := range map[string]string{
		"a/net": "pci:v00008086d0000100Esv1", "a/disk": "pci:v1d2sv3sd4bc01sc06i01",
		"b/usb": "usb:v0BDAp8153d3000dc00dsc00dp00ic08isc06ip50in00", "b/same": "pci:v1d2sv3sd4bc01sc06i01", "b/none": "",
	} {
		dir = filepath.Join(sys, "devices", dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(alias+"\n"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	err := l.Coldplug(sys)
	if err == nil || !strings.Contains(err.Error(), "load module r8152: no firmware") {
		t.Errorf("Coldplug() = %v; want the failure of r8152", err)
	}
	want := []string{"ahci", "usb_storage"} // e1000 needs sd, bc, sc and i
	if diff := cmp.Diff(want, *loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

func TestLoad(t *testing.T) {
	l, loaded := loader(t)
	for _, spec := range []string{"wireguard", " loop  max_loop=16 max_part=2 "} {
		if err := l.Load(spec); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"wireguard", "loop max_loop=16 max_part=2"}, *loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

func TestOpen(t *testing.T) {
	root := t.TempDir()
	if _, err := Open(root, "6.12.1"); !errors.Is(err, ErrNoModules) {
		t.Errorf("Open() = %v; want ErrNoModules", err)
	}
	dir := filepath.Join(root, "usr/lib/modules/6.12.1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"modules.alias": sample, "modules.dep": "kernel/net/x.ko.zst:\n", "modules.builtin": "kernel/fs/ext4.ko\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(root, "6.12.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Load("ext4"); err != nil {
		t.Errorf("Load of a built-in module = %v; want nil", err)
	}
	if err := l.Load("nonesuch"); err == nil {
		t.Error("Load of an unknown module succeeded")
	}
}
