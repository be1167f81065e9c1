package join

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

// TestConfigurationHoldsAnotherToken gives the first server the text or the secret of a token of the cluster: that token
// goes on to admit what it admits, and nothing more, also after its end.
func TestConfigurationHoldsAnotherToken(t *testing.T) {
	c := newCluster(t)
	pin := mustPin(t, c)
	machines := 0
	joins := func(role membership.Role, text string) error {
		c.advance(time.Minute) // gives back to the limiter
		machines++
		o, _ := c.machine(role, fmt.Sprint("m", machines), text)
		return run(t, o)
	}
	made, madeID := c.create(TokenRequest{TTL: 24 * time.Hour})
	for name, text := range map[string]string{"agent": c.token(token.Agent), madeID: made} {
		t.Run(name, func(t *testing.T) {
			secret := text[strings.LastIndex(text, ":")+1:]
			forms := []string{text, secret, token.Token{Pin: pin, ID: token.Config, Secret: secret}.String()}
			never := func(when string) {
				t.Helper()
				for _, form := range forms {
					for _, role := range []membership.Role{membership.Server, membership.Witness} {
						if err := joins(role, form); !IsRefusal(err) {
							t.Fatalf("%s: a %s joined by the token %s", when, role, name)
						}
					}
				}
			}
			for _, form := range forms {
				c.found("") // nothing is remembered
				c.log.Reset()
				c.found(form)
				if !strings.Contains(c.log.String(), "is another token") || !strings.Contains(c.log.String(), "token="+name) {
					t.Errorf("no word about what the token is: %s", c.log.String())
				}
				never("configured")
				if err := joins(membership.Agent, text); err != nil {
					t.Errorf("an agent cannot join by the token %s any more: %v", name, err)
				}
				if _, err := TokenText(t.Context(), c.client, token.Config, c.caFile()); !IsRefusal(err) || !strings.Contains(err.Error(), name) {
					t.Errorf("TokenText(config) = %v; want the id of the other", err)
				}
			}
			if err := RevokeToken(t.Context(), c.client, name); err != nil {
				t.Fatal(err)
			}
			for _, form := range forms[1:] { // the secret alone was configured when its token was revoked
				c.found(form)
				never("revoked")
			}
			c.found(text)
			never("revoked")
			for _, form := range forms {
				if err := joins(membership.Agent, form); !IsRefusal(err) {
					t.Error("an agent joined by a revoked token")
				}
			}
		})
	}
	c.found(plainSecret) // and the configuration can have one of its own again
	if err := joins(membership.Witness, plainSecret); err != nil {
		t.Error(err)
	}
}

// TestOneTimeTokenOfOneMachine copies the identity of the machine that used a one-time token to others.
func TestOneTimeTokenOfOneMachine(t *testing.T) {
	c := newCluster(t)
	text, _ := c.create(TokenRequest{Role: "server", Once: true})
	first, _ := c.machine(membership.Agent, "one", text)
	mustRun(t, first)
	for _, tt := range []struct {
		role membership.Role
		node string
	}{{membership.Agent, "two"}, {membership.Server, "one"}, {membership.Witness, "three"}} {
		o, _ := c.machine(tt.role, tt.node, text)
		if err := os.CopyFS(o.path("node"), os.DirFS(first.path("node"))); err != nil {
			t.Fatal(err)
		}
		if err := o.unjoin(); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, o, run(t, o), CodeUsed, "node one")
	}
	if err := first.unjoin(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, first)
}

// TestOutsidersLockNobodyOut fails from many addresses, which none but those who share a guessable secret notice.
func TestOutsidersLockNobodyOut(t *testing.T) {
	c := newCluster(t)
	member, _ := c.machine(membership.Agent, "member", c.token(token.Agent))
	m := mustRun(t, member)
	from := 0
	ask := func(path, id string) int {
		from++
		body := fmt.Sprintf(`{"v":1,"token":%q,"salt":%q,"sealed":"AAAA"}`, id, strings.Repeat("A", 43)+"=")
		q := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		q.RemoteAddr = fmt.Sprintf("10.%d.%d.1:1", from/250, from%250)
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, q)
		return w.Code
	}
	for range 3 * totalBurst {
		if code := ask(RenewPath, ""); code != http.StatusBadRequest {
			t.Fatalf("renewal without a signature: %d", code)
		}
		if code := ask(JoinPath, token.Agent); code != http.StatusUnauthorized {
			t.Fatalf("wrong secret of a made token: %d", code)
		}
	}
	plain, _ := c.machine(membership.Agent, "plain", plainSecret)
	mustRun(t, plain) // those were no guesses at it
	for range totalBurst {
		if code := ask(JoinPath, ""); code != http.StatusUnauthorized {
			t.Fatalf("guess: %d", code)
		}
	}
	if code := ask(JoinPath, token.Config); code != http.StatusTooManyRequests {
		t.Errorf("one guess too many: %d", code)
	}
	whole, _ := c.machine(membership.Server, "whole", c.token(token.Server))
	whole.Addresses = nil
	mustRun(t, whole)
	if _, _, err := Renew(t.Context(), member.renewOptions(m)); err != nil {
		t.Error(err)
	}
	late, _ := c.machine(membership.Agent, "late", plainSecret)
	if err := run(t, late); err == nil || IsRefusal(err) {
		t.Errorf("Run with a guessable secret = %v; want to wait", err)
	}
	c.advance(totalRate)
	mustRun(t, late)
}
