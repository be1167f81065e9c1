package admin

import (
	"time"

	storeadmin "github.com/cairn-os/cairn/pkg/store/admin"
)

// Token lets machines join.
type Token struct {
	ID          string    `json:"id"`
	Role        string    `json:"role"` // server or agent: the highest role that it admits
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created,omitzero"`
	Expires     time.Time `json:"expires,omitzero"` // zero: never
	Once        bool      `json:"once,omitempty"`   // good for one machine
	UsedBy      string    `json:"usedBy,omitempty"` // node that used one of these
	UsedAt      time.Time `json:"usedAt,omitzero"`
	// Text is what goes into a cloud-config. It is a secret, and told only when one token is created or asked for.
	Text string `json:"text,omitempty"`
}

// TokenRequest asks for a new token.
type TokenRequest struct {
	Role        string        `json:"role"`                     // server or agent
	TTL         time.Duration `json:"ttlNanoseconds,omitempty"` // 0: it does not expire
	Once        bool          `json:"once,omitempty"`
	Description string        `json:"description,omitempty"`
}

// KubeconfigRequest asks for a client configuration for a person or a machine outside of the cluster.
type KubeconfigRequest struct {
	User   string        `json:"user"`
	Groups []string      `json:"groups,omitempty"`
	TTL    time.Duration `json:"ttlNanoseconds"`   // at most a year: there is no way to take a certificate back
	Server string        `json:"server,omitempty"` // URL; empty: the server's own, by its primary address
}

// Cluster is the state of the cluster as one server sees it. What could not be found out is empty, and Problems says why.
type Cluster struct {
	Nodes   []Node            `json:"nodes"`
	Servers []Server          `json:"servers"`
	Store   storeadmin.Status `json:"store,omitzero"` // zero when the data is in an etcd that somebody else runs
	// Certificates are those of the answering server and the serving ones of the other servers, the first to expire first.
	Certificates []Certificate        `json:"certificates"`
	Snapshot     *storeadmin.Snapshot `json:"snapshot,omitempty"`    // the newest one known
	Controllers  string               `json:"controllers,omitempty"` // name of the node whose controllers are at work
	Rotation     *Rotation            `json:"rotation,omitempty"`    // nil when no authorities are being replaced
	Problems     []string             `json:"problems,omitempty"`
}

// Node is a machine that runs pods.
type Node struct {
	Name      string        `json:"name"`
	Roles     []string      `json:"roles,omitempty"`
	Ready     bool          `json:"ready"`
	Version   string        `json:"version"` // of the operating system
	Kubelet   string        `json:"kubelet"`
	Addresses []string      `json:"addresses,omitempty"`
	Age       time.Duration `json:"ageNanoseconds"` // since it registered
}

// Server is a machine with an apiserver: one that says so about itself in the Service default/kubernetes, or whose node
// has the role.
type Server struct {
	Name      string `json:"name"`    // empty when no node has the address
	Address   string `json:"address"` // host:port
	Reachable bool   `json:"reachable"`
	Version   string `json:"version,omitempty"` // of its apiserver
	Leader    bool   `json:"leader,omitempty"`  // its controllers are the ones at work
	Problem   string `json:"problem,omitempty"` // why it is not reachable
}

// Certificate tells when a certificate ends.
type Certificate struct {
	Name      string        `json:"name"`
	Node      string        `json:"node"`
	Issuer    string        `json:"issuer,omitempty"`    // name of the authority that signed it, when it is known
	Authority bool          `json:"authority,omitempty"` // signs others; its own issuer
	Idle      bool          `json:"idle,omitempty"`      // an authority that is trusted and signs nothing: before or after its time
	Expires   time.Time     `json:"expires"`
	Left      time.Duration `json:"leftNanoseconds"` // negative when it has expired
}

// RotationRequest asks for the replacement of all authorities.
type RotationRequest struct {
	Check bool `json:"check,omitempty"` // only say whether it could begin
}

// Rotation is how far the replacement of the authorities is.
type Rotation struct {
	ID      string        `json:"id,omitempty"`    // of the authority to come, as Authority will be; empty: none is under way
	Stage   string        `json:"stage,omitempty"` // trust, sign, retire
	Since   time.Time     `json:"since,omitzero"`  // of the stage
	Begun   time.Time     `json:"begun,omitzero"`
	By      string        `json:"by,omitempty"`                 // node of the server that was told to
	Waiting []string      `json:"waiting,omitempty"`            // who has not come as far as the stage, and what to do
	Settles time.Duration `json:"settlesNanoseconds,omitempty"` // how long the stage is held still when nobody is waited for
	// Authority is the SHA-256 of the certificate of the authority that signs on the answering server, as tokens have it.
	Authority string `json:"authority"`
}

// Problem is the body of every answer that is not a success.
type Problem struct {
	Error string `json:"error"`
}
