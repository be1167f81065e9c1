package join

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/cairn-os/cairn/pkg/membership"
)

// decodeRenewal reads a renewal request and returns it with the hash of the identity that signed it.
func decodeRenewal(data []byte) (q *renewal, identity string, refusal *Refusal) {
	var m signedRequest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, "", refuse(CodeRequest, "the request is not JSON as it should be: %v", err)
	}
	if m.V != protocolVersion {
		return nil, "", refuseProtocol(m.V)
	}
	q = new(renewal)
	if err := json.Unmarshal(m.Signed.Body, q); err != nil {
		return nil, "", refuse(CodeRequest, "the request cannot be read: %v", err)
	}
	identity, ok := m.Signed.verify(labelRenew, nil, q.Identity)
	if !ok {
		return nil, "", refuse(CodeRequest, "the machine does not show that it has the identity it names")
	}
	return q, identity, nil
}

// renew answers a renewal request. Its replay gives nothing: the certificate is for a key that only the machine has. The
// machine's clock is not looked at, for it may have been off for a year.
func (s *Server) renew(ctx context.Context, w http.ResponseWriter, r *http.Request, body []byte) bool {
	q, identity, refusal := decodeRenewal(body)
	if refusal != nil {
		writeProblem(w, http.StatusBadRequest, problem(*refusal))
		return false
	}
	log := s.Log.With("from", r.RemoteAddr, "node", logged(q.Node))
	a, err := s.renewed(ctx, q, identity)
	if IsRefusal(err) {
		log.Warn("join: renewal refused", "error", err)
		writeProblem(w, http.StatusForbidden, asProblem(err))
		return false
	}
	if err != nil {
		return s.unavailable(w, r, err)
	}
	log.Info("join: renewed", "identity", identity, "clock", q.Time.UTC().Format(time.RFC3339))
	writeJSON(w, http.StatusOK, a)
	return true
}

func (s *Server) renewed(ctx context.Context, q *renewal, identity string) (*answer, error) {
	removed := refuse(CodeRemoved, "the node %s was removed from the cluster: to take the machine in again, start it anew with a cairn.token that is good; "+
		"else return it to its factory state with \"cairnctl reset\"", logged(q.Node))
	if len(validation.IsDNS1123Subdomain(q.Node)) > 0 || len(q.Node) > maxName {
		return nil, removed // no such node was ever admitted
	}
	have, err := getRecord(ctx, s.Client, q.Node)
	switch {
	case err != nil:
		return nil, err
	case have == nil:
		return nil, removed
	case !sameText(have.Identity, identity):
		return nil, refuse(CodeIdentity, "the name %s belongs to another machine of the cluster now: choose another hostname, and let this machine join with a token", q.Node)
	case have.Role != membership.Agent && have.Role != membership.Witness:
		return nil, refuse(CodeRole, "%s is a %s, which signs its certificates itself", q.Node, have.Role)
	}
	settings, err := LoadSettings(ctx, s.Client)
	if err != nil {
		return nil, err
	}
	a, err := s.material(ctx, have.Role, q.Node, q.CSR, settings)
	if err != nil {
		return nil, err
	}
	return a, s.recordAuthorities(ctx, q, a)
}

// recordAuthorities records which authorities the machine trusts, when it trusts those that it is told here: what else it
// says is old, or somebody repeats it.
func (s *Server) recordAuthorities(ctx context.Context, q *renewal, a *answer) error {
	if q.Authorities == "" || !sameText(q.Authorities, a.authorities()) {
		return nil
	}
	return SetAuthorities(ctx, s.Client, q.Node, q.Authorities)
}
