package release

import (
	"errors"
	"fmt"
)

// MaxChannelSize is the size of the largest Channel in bytes.
const MaxChannelSize = 4 << 10

// Channel is a signed file that names the newest version of one line of
// releases of one target, such as "stable". Its path (ChannelPath) says which.
type Channel struct {
	// Version is the newest version of the channel.
	Version string `json:"version"`
	// Floor is the version below which no machine may go down; "" for none.
	Floor string `json:"floor,omitempty"`
}

// DecodeChannel reads what Encode writes.
func DecodeChannel(data []byte) (Channel, error) {
	var c Channel
	if err := decode(data, MaxChannelSize, &c); err != nil {
		return Channel{}, fmt.Errorf("read channel: %w", err)
	}
	if err := c.Check(); err != nil {
		return Channel{}, fmt.Errorf("read channel: %w", err)
	}
	return c, nil
}

// Encode returns the file's text. It refuses what DecodeChannel would refuse.
func (c Channel) Encode() ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("write channel: %w", err)
	}
	return encode(c)
}

// Check says what is wrong with c.
func (c Channel) Check() error {
	if err := CheckVersion(c.Version); err != nil {
		return err
	}
	if c.Floor == "" {
		return nil
	}
	if err := CheckVersion(c.Floor); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	if Compare(c.Version, c.Floor) < 0 {
		return errors.New("floor " + c.Floor + " is above version " + c.Version)
	}
	return nil
}
