package damage

import (
	"encoding/json"
	"fmt"
)

// identityFile is pkg/store/member's: it names the member that the directory
// belongs to.
const identityFile = "identity.json"

// identity checks identity.json, without which the member does not start. The
// ID is in it twice, so a changed bit shows.
func (in *inspection) identity() {
	if !in.hasID {
		if !in.report.Empty || in.version != 0 {
			in.add(Finding{Severity: Damaged, Kind: Identity, File: identityFile, Offset: -1, Text: "missing beside the data of a member"})
		}
		return
	}
	data, err := in.read(identityFile, 1<<16)
	if err != nil {
		in.unreadable(identityFile, err)
		return
	}
	if err := checkIdentity(data); err != nil {
		in.add(Finding{Severity: Damaged, Kind: Identity, File: identityFile, Offset: -1, Text: err.Error()})
	}
}

func checkIdentity(data []byte) error {
	var id struct {
		ID      uint64 `json:"id"`
		Address string `json:"address"`
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return err
	}
	if id.ID == 0 {
		return fmt.Errorf("no id")
	}
	if want := fmt.Sprintf("member-%016x", id.ID); id.Address != want {
		return fmt.Errorf("id %d belongs to %s, and the address is %q", id.ID, want, id.Address)
	}
	return nil
}
