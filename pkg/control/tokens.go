package control

import (
	"net/http"

	"github.com/cairn-os/cairn/pkg/control/admin"
	"github.com/cairn-os/cairn/pkg/join"
	"github.com/cairn-os/cairn/pkg/pki"
)

func describeToken(t join.TokenInfo) admin.Token {
	return admin.Token{ID: t.ID, Role: t.Role, Description: t.Description, Created: t.Created, Expires: t.Expires, Once: t.Once, UsedBy: t.UsedBy, UsedAt: t.UsedAt}
}

func (op *operator) listTokens(r *http.Request) (any, error) {
	found, err := join.ListTokens(r.Context(), op.client)
	all := make([]admin.Token, 0, len(found))
	for _, t := range found {
		all = append(all, describeToken(t))
	}
	return all, err
}

func (op *operator) createToken(r *http.Request) (any, error) {
	var request admin.TokenRequest
	if err := decode(r, &request); err != nil {
		return nil, err
	}
	text, made, err := join.CreateToken(r.Context(), op.client, join.TokenRequest{
		Role: request.Role, TTL: request.TTL, Once: request.Once, Description: request.Description, CAFile: op.options.authority(pki.ServerCA),
	})
	if err != nil {
		return nil, err
	}
	op.log.Info("token created", "id", made.ID, "role", made.Role, "expires", made.Expires, "once", made.Once)
	t := describeToken(made)
	t.Text = text
	return t, nil
}

func (op *operator) tellToken(r *http.Request) (any, error) {
	id := r.PathValue("id")
	found, err := join.ListTokens(r.Context(), op.client)
	if err != nil {
		return nil, err
	}
	for _, info := range found {
		if info.ID != id {
			continue
		}
		t := describeToken(info)
		t.Text, err = join.TokenText(r.Context(), op.client, id, op.options.authority(pki.ServerCA))
		return t, err
	}
	return nil, refuse(http.StatusNotFound, "there is no token %q: see \"cairnctl token list\"", id)
}

func (op *operator) revokeToken(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := join.RevokeToken(r.Context(), op.client, id); err != nil {
		return nil, err
	}
	op.log.Info("token revoked", "id", id)
	return nil, nil
}
