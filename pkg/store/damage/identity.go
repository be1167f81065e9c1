package damage

import (
	"encoding/json"
	"errors"
	"fmt"
)

// identityFile is pkg/store/member's: it names the member that the directory
// belongs to.
const identityFile = "identity.json"

const (
	// bootstrapID is the ID of a member that founds a cluster (member.BootstrapID).
	bootstrapID = 0x2dc171858c3155be
	// bootstrapFile is pkg/store/member's: the founding has not finished.
	bootstrapFile = ".bootstrapping"
)

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
	if in.id, err = parseIdentity(data); err != nil {
		in.add(Finding{Severity: Damaged, Kind: Identity, File: identityFile, Offset: -1, Text: err.Error()})
	}
}

func parseIdentity(data []byte) (uint64, error) {
	var id struct {
		ID      uint64 `json:"id"`
		Address string `json:"address"`
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return 0, err
	}
	if id.ID == 0 {
		return 0, errors.New("no id")
	}
	if want := fmt.Sprintf("member-%016x", id.ID); id.Address != want {
		return 0, fmt.Errorf("id %d belongs to %s, and the address is %q", id.ID, want, id.Address)
	}
	return id.ID, nil
}
