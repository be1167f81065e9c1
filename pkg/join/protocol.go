package join

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
)

// Paths that Server.Handler serves.
const (
	CAPath    = "/cairn/v1/ca"
	JoinPath  = "/cairn/v1/join"
	RenewPath = "/cairn/v1/renew"
)

const (
	protocolVersion = 1
	// maxRequest and maxAnswer bound the bodies, in bytes. A request is some 2 kB, an answer to a server 20 kB.
	maxRequest = 64 << 10
	maxAnswer  = 512 << 10
	maxCA      = 64 << 10
	saltSize   = 32
	// maxSkew is how far the clocks of a machine and a server may be apart. It also bounds how long a request that
	// somebody recorded can be repeated.
	maxSkew = 10 * time.Minute
	// bootstrapLife is the life of the certificate that an agent asks for its others with.
	bootstrapLife = 10 * time.Minute
)

// envelope is the body of a join request. Sealed holds a signed whose body is a request.
type envelope struct {
	V      int    `json:"v"`
	Token  string `json:"token"` // id; empty for a plain secret
	Salt   []byte `json:"salt"`  // never repeated
	Sealed []byte `json:"sealed"`
}

// request is what a machine asks for. Only who knows the token's secret can read it.
type request struct {
	Role      membership.Role      `json:"role"`
	Node      string               `json:"node"`
	Version   string               `json:"version"`  // of Kubernetes
	Identity  []byte               `json:"identity"` // public key, PKIX
	CSR       []byte               `json:"csr"`      // DER: of the bootstrap certificate, or of the store's
	Settings  *membership.Settings `json:"settings,omitempty"`
	Addresses []netip.Addr         `json:"addresses,omitempty"`
	Time      time.Time            `json:"time"` // zero: what the cluster's is
}

// reply carries an answer that only the asking machine can read.
type reply struct {
	V      int    `json:"v"`
	Salt   []byte `json:"salt"`
	Sealed []byte `json:"sealed"`
}

// answer is what a machine gets: a problem, or all the rest.
type answer struct {
	Problem     *problem            `json:"problem,omitempty"`
	Settings    membership.Settings `json:"settings"`
	Servers     []string            `json:"servers"`
	StorePeers  []string            `json:"storePeers,omitempty"`
	Certificate []byte              `json:"certificate"`   // PEM, for the CSR
	Files       map[string][]byte   `json:"files"`         // by their names; see filesFor
	Time        time.Time           `json:"time,omitzero"` // the server's, when the answer is sealed

	from     string // host:port of who answered
	recorded string // what the server recorded of the machine's authorities; "" for nothing
}

// problem is a Refusal, or a reason that passes, on its way to the machine.
type problem struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// renewal is the body of what a machine asks without a token; it travels in a signed.
type renewal struct {
	Node     string    `json:"node"`
	Identity []byte    `json:"identity"` // public key, PKIX; the cluster knows its hash
	CSR      []byte    `json:"csr"`      // DER
	Nonce    []byte    `json:"nonce"`
	Time     time.Time `json:"time"` // for the server's log: the clock may be wrong
	// Authorities is the BundleHash of the machine's server-ca, once its certificates are of the authorities that sign.
	Authorities string `json:"authorities,omitempty"`
}

// signedRequest is the body of a renewal request.
type signedRequest struct {
	V      int    `json:"v"`
	Signed signed `json:"signed"`
}

// decodeEnvelope reads a join request as far as anybody can.
func decodeEnvelope(data []byte) (*envelope, *Refusal) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, refuse(CodeRequest, "the request is not JSON as it should be: %v", err)
	}
	if e.V != protocolVersion {
		return nil, refuseProtocol(e.V)
	}
	if len(e.Salt) != saltSize || len(e.Token) > 64 {
		return nil, refuse(CodeRequest, "the request's salt or token id has a wrong length")
	}
	return &e, nil
}

func refuseProtocol(v int) *Refusal {
	return refuse(CodeVersion, "the machine speaks join protocol %d, this server %d: give both the same release", v, protocolVersion)
}
