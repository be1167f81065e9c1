package partition

import "testing"

func TestTable(t *testing.T) {
	for _, bios := range []bool{true, false} {
		parts := Table(bios)
		end := int64(MiB) // the table itself
		names, numbers := map[string]bool{}, map[int]bool{}
		for _, p := range parts {
			if p.Start != end || p.Start%MiB != 0 || p.Size%MiB != 0 || p.Size <= 0 {
				t.Errorf("Table(%v): %s at %d, %d bytes; want it right behind the one before, in MiB", bios, p.Name, p.Start, p.Size)
			}
			if names[p.Name] || numbers[p.Number] {
				t.Errorf("Table(%v): %s or its number %d is there twice", bios, p.Name, p.Number)
			}
			names[p.Name], numbers[p.Number] = true, true
			end = p.Start + p.Size
		}
		if last := parts[len(parts)-1]; last.Name != Data {
			t.Errorf("Table(%v) ends with %s; only the last can grow, so want %s", bios, last.Name, Data)
		}
		if got := DiskSize(parts); got <= end || got > 3600*MiB {
			t.Errorf("DiskSize = %d; want more than %d and room on a card sold as 4 GB", got, end)
		}
		if _, ok := Find(parts, BIOS); ok != bios {
			t.Errorf("Table(%v) has a BIOS boot partition: %v", bios, ok)
		}
	}
}
