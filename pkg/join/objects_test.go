package join

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cairn-os/cairn/pkg/membership"
	"github.com/cairn-os/cairn/pkg/token"
)

func TestFoundIsIdempotent(t *testing.T) {
	c := newCluster(t)
	texts := map[string]string{}
	for _, id := range []string{token.Server, token.Agent, token.Config} {
		texts[id] = c.token(id)
	}
	before := c.identityOf("first")
	c.found(plainSecret)
	for id, text := range texts {
		if got := c.token(id); got != text {
			t.Errorf("token %s changed", id)
		}
	}
	if c.identityOf("first") != before {
		t.Error("the record of the first server changed")
	}
	// Settings are fixed.
	other := membership.DefaultSettings()
	other.Flannel = "none"
	if err := createSettings(t.Context(), c.client, other); err != nil {
		t.Fatal(err)
	}
	if s, err := LoadSettings(t.Context(), c.client); err != nil || s.Flannel != "vxlan" {
		t.Errorf("settings %+v, %v", s, err)
	}
	// A revoked token of the cluster comes back with another secret.
	if err := RevokeToken(t.Context(), c.client, token.Agent); err != nil {
		t.Fatal(err)
	}
	c.found(plainSecret)
	if c.token(token.Agent) == texts[token.Agent] {
		t.Error("the revoked token came back")
	}
}

func TestConfigTokenFollows(t *testing.T) {
	c := newCluster(t)
	joins := func(text string) error {
		c.advance(time.Hour)
		o, _ := c.machine(membership.Witness, fmt.Sprintf("w%d", c.clock().Unix()), text)
		return run(t, o)
	}
	if err := joins(c.token(token.Config)); err != nil { // the pinned form of a chosen secret
		t.Error(err)
	}
	c.found("another-secret")
	if err := joins(plainSecret); !IsRefusal(err) {
		t.Errorf("the old secret: %v", err)
	}
	if err := joins("another-secret"); err != nil {
		t.Error(err)
	}
	c.found(otherPin(t, token.Token{Pin: mustPin(t, c), ID: token.Config, Secret: "mine"}.String()))
	if !strings.Contains(c.log.String(), "names another cluster's CA") {
		t.Error("no warning about a foreign pin")
	}
	mine := token.Token{Pin: mustPin(t, c), ID: token.Config, Secret: "mine"}.String()
	for _, text := range []string{mine, "mine"} {
		if err := joins(text); err != nil {
			t.Error(err)
		}
	}
	if err := joins("another-secret"); !IsRefusal(err) {
		t.Errorf("the old secret: %v", err)
	}
	c.found("two words")
	if !strings.Contains(c.log.String(), "of no use") {
		t.Error("no word about a token that cannot be read")
	}
	if err := joins(mine); !IsRefusal(err) {
		t.Errorf("a removed token: %v", err)
	}
	if err := joins("another-secret"); !IsRefusal(err) {
		t.Errorf("a removed token: %v", err)
	}
	if err := RevokeToken(t.Context(), c.client, token.Config); !IsRefusal(err) {
		t.Errorf("RevokeToken(config) = %v", err)
	}
}

func TestTokens(t *testing.T) {
	c := newCluster(t)
	text, id := c.create(TokenRequest{Role: "server", TTL: time.Hour, Once: true, Description: "for the till"})
	list, err := ListTokens(t.Context(), c.client)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, info := range list {
		ids = append(ids, info.ID)
		if info.ID != id {
			continue
		}
		left := time.Until(info.Expires)
		if info.Role != "server" || !info.Once || info.Description != "for the till" || left > time.Hour || left < 50*time.Minute || info.Created.IsZero() {
			t.Errorf("info %+v", info)
		}
	}
	if len(ids) != 4 {
		t.Errorf("ids %v; want three and %s", ids, id)
	}
	if again, err := TokenText(t.Context(), c.client, id, c.caFile()); err != nil || again != text {
		t.Errorf("TokenText = %q, %v; want %q", again, err, text)
	}
	for _, bad := range []TokenRequest{{Role: "witness"}, {Role: "x"}, {TTL: -1}} {
		bad.CAFile = c.caFile()
		if _, _, err := CreateToken(t.Context(), c.client, bad); !IsRefusal(err) {
			t.Errorf("CreateToken(%+v) = %v", bad, err)
		}
	}
	for _, id := range []string{"nope", "../x", ""} {
		if err := RevokeToken(t.Context(), c.client, id); !IsRefusal(err) {
			t.Errorf("RevokeToken(%q) = %v", id, err)
		}
	}
	// A Secret that only has the name is no token.
	c.add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: TokenPrefix + "fake", Namespace: Namespace}, Data: map[string][]byte{keySecret: []byte("x"), keyRole: []byte("server")}})
	if _, err := TokenText(t.Context(), c.client, "fake", c.caFile()); !IsRefusal(err) {
		t.Errorf("TokenText of an opaque Secret = %v", err)
	}
	o, _ := c.machine(membership.Server, "s", token.Token{Pin: mustPin(t, c), ID: "fake", Secret: "x"}.String())
	wantRefusal(t, o, run(t, o), CodeToken)
}

func mustPin(t *testing.T, c *cluster) string {
	t.Helper()
	pin, err := pinOf(c.caFile())
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

// TestDamagedTokens shows that a token whose Secret was edited by hand admits nobody it should not.
func TestDamagedTokens(t *testing.T) {
	c := newCluster(t)
	for name, change := range map[string]func(map[string][]byte){
		"no secret":         func(d map[string][]byte) { delete(d, keySecret) },
		"no role":           func(d map[string][]byte) { delete(d, keyRole) },
		"unreadable expiry": func(d map[string][]byte) { d[keyExpires] = []byte("tomorrow") },
	} {
		text, id := c.create(TokenRequest{Role: "server"})
		s, err := c.client.CoreV1().Secrets(Namespace).Get(t.Context(), TokenPrefix+id, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(s.Data)
		if _, err := c.client.CoreV1().Secrets(Namespace).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		o, _ := c.machine(membership.Agent, "a", text)
		if err := run(t, o); !IsRefusal(err) {
			t.Errorf("%s: Run = %v; want a refusal", name, err)
		}
	}
}

func TestBeforeFound(t *testing.T) {
	c := newCluster(t)
	if err := c.client.CoreV1().ConfigMaps(Namespace).Delete(t.Context(), SettingsName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSettings(t.Context(), c.client); !apierrors.IsNotFound(err) {
		t.Errorf("LoadSettings = %v; want NotFound", err)
	}
	o, _ := c.machine(membership.Agent, "a", c.token(token.Agent))
	if err := run(t, o); err == nil || IsRefusal(err) {
		t.Errorf("Run = %v; want an error that passes", err)
	}
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	node := func(id string, role membership.Role, joined time.Time, lease string) *record {
		return &record{NodeRecord: NodeRecord{Name: "n", Identity: id, Role: role, Joined: joined}, heard: lease}
	}
	const long = aliveWithin
	for _, tt := range []struct {
		name  string
		have  *record
		heard heard
		role  membership.Role
		token string
		want  Code
	}{
		{"free", nil, heard{}, membership.Agent, "agent", ""},
		{"alive without a record", nil, heard{lease: "2", node: true}, membership.Agent, "agent", CodeName},
		{"silent without a record", nil, heard{lease: "2", node: true, quiet: long}, membership.Agent, "agent", ""},
		{"own", node("me", membership.Agent, ago(time.Second), ""), heard{lease: "2", node: true}, membership.Agent, "agent", ""},
		{"alive", node("it", membership.Agent, ago(time.Hour), ""), heard{lease: "2", node: true}, membership.Agent, "server", CodeName},
		{"lost", node("it", membership.Agent, ago(time.Hour), ""), heard{lease: "2", node: true, lost: true}, membership.Agent, "agent", ""},
		{"Node deleted", node("it", membership.Agent, ago(time.Hour), ""), heard{lease: "2"}, membership.Agent, "agent", ""},
		{"silent for a minute, and nobody says that it is lost", node("it", membership.Agent, ago(time.Hour), ""), heard{lease: "2", node: true, quiet: long}, membership.Agent, "agent", ""},
		{"starting", node("it", membership.Agent, ago(2*time.Minute), ""), heard{quiet: long}, membership.Agent, "agent", CodeName},
		{"starting after a lost one", node("it", membership.Agent, ago(2*time.Minute), "2"), heard{lease: "2", node: true, lost: true, quiet: long}, membership.Agent, "agent", CodeName},
		{"started after a lost one, and lost", node("it", membership.Agent, ago(2*time.Minute), "2"), heard{lease: "3", node: true, lost: true}, membership.Agent, "agent", ""},
		{"never started", node("it", membership.Agent, ago(settling), ""), heard{quiet: long}, membership.Agent, "agent", ""},
		{"never started, not looked at for long", node("it", membership.Agent, ago(settling), ""), heard{}, membership.Agent, "agent", CodeName},
		{"record from the future", node("it", membership.Agent, ago(-time.Hour), ""), heard{quiet: long}, membership.Agent, "agent", ""},
		{"wiped server", node("it", membership.Server, ago(time.Hour), ""), heard{lease: "2", node: true, lost: true}, membership.Server, "server", ""},
		{"server in the store", node("it", membership.Server, ago(time.Hour), ""), heard{lease: "2", node: true, lost: true, online: true}, membership.Server, "server", CodeName},
		{"agent becomes server", node("it", membership.Agent, ago(time.Hour), ""), heard{quiet: long}, membership.Server, "server", ""},
		{"server becomes agent", node("me", membership.Server, ago(time.Hour), ""), heard{}, membership.Agent, "server", CodeRole},
		{"server's name, agent's token", node("me", membership.Server, ago(time.Hour), ""), heard{}, membership.Agent, "agent", CodeRole},
		{"witness's name, agent's token", node("it", membership.Witness, ago(time.Hour), ""), heard{}, membership.Agent, "agent", CodeRole},
	} {
		c := claim{record{NodeRecord: NodeRecord{Name: "n", Identity: "me", Role: tt.role, Joined: now}}, tt.token, now}
		err := c.decide(tt.have, tt.heard)
		var got Code
		if r, ok := err.(*Refusal); ok {
			got = r.Code
		}
		if got != tt.want {
			t.Errorf("%s: decide = %v; want %q", tt.name, err, tt.want)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, tt := range []struct {
		server, machine string
		want            Code
	}{
		{"v1.36.4", "v1.36.4", ""}, {"v1.36.4", "v1.36.9", ""}, {"v1.36.4", "1.35.0", ""}, {"v1.36.4", "v1.36.4+cairn.1", ""},
		{"v1.36.4", "v1.37.0", CodeVersion}, {"v1.36.4", "v2.0.0", CodeVersion}, {"v1.36.4", "new", CodeRequest}, {"v1.36.4", "", CodeRequest},
	} {
		err := checkVersion(tt.server, tt.machine)
		var got Code
		if r, ok := err.(*Refusal); ok {
			got = r.Code
		}
		if got != tt.want {
			t.Errorf("checkVersion(%s, %s) = %v; want %q", tt.server, tt.machine, err, tt.want)
		}
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(func() time.Time { return now })
	a, b := source("192.0.2.1:1000"), source("[2001:db8::1]:5")
	if a != source("[::ffff:192.0.2.1]:7") || b != source("[2001:db8::ffff]:9") || b == source("[2001:db8:0:1::1]:9") || source("junk") != (netip.Prefix{}) {
		t.Error("sources are counted apart that should not be, or together")
	}
	for range sourceBurst {
		if _, ok := l.take(a); !ok {
			t.Fatal("refused within the burst")
		}
	}
	wait, ok := l.take(a)
	if ok || wait != sourceRate {
		t.Errorf("take = %v, %v; want to wait %v", wait, ok, sourceRate)
	}
	if _, ok := l.take(b); !ok {
		t.Error("another source was refused")
	}
	now = now.Add(-time.Hour) // a clock that is put right
	if _, ok := l.take(a); ok {
		t.Error("a clock put back gave something")
	}
	now = now.Add(sourceRate)
	if _, ok := l.take(a); !ok {
		t.Error("nothing was given back in time")
	}
	for i := range 3 * totalBurst {
		l.take(source(fmt.Sprintf("10.0.%d.%d:1", i/250, i%250)))
	}
	if wait, ok := l.take(source("10.9.9.9:1")); !ok {
		t.Errorf("a source waits %v because of others", wait)
	}
	now = now.Add(time.Hour)
	for i := range 3 * maxSources {
		l.take(source(fmt.Sprintf("10.%d.%d.1:1", i/250, i%250)))
	}
	if len(l.sources) > maxSources {
		t.Errorf("%d sources are remembered; want at most %d", len(l.sources), maxSources)
	}
}

func TestSealer(t *testing.T) {
	s := sealer{master: []byte("m"), salt: []byte("salt"), label: labelRequest, ca: sha256.Sum256([]byte("ca")), id: "x"}
	sealed, err := s.seal([]byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.open(sealed); err != nil || string(got) != "text" {
		t.Fatalf("open = %q, %v", got, err)
	}
	for name, change := range map[string]func(*sealer){
		"secret": func(s *sealer) { s.master = []byte("n") },
		"salt":   func(s *sealer) { s.salt = []byte("other") },
		"label":  func(s *sealer) { s.label = labelAnswer },
		"ca":     func(s *sealer) { s.ca = sha256.Sum256([]byte("mallory")) },
		"id":     func(s *sealer) { s.id = "y" },
		"answer": func(s *sealer) { *s = s.answering([]byte("t")) },
	} {
		other := s
		change(&other)
		if _, err := other.open(sealed); err == nil {
			t.Errorf("opened with another %s", name)
		}
	}
	for n := range sealed {
		if _, err := s.open(sealed[:n]); err == nil {
			t.Errorf("opened %d of %d bytes", n, len(sealed))
		}
	}
}

// TestStretcher shows that chosen secrets are stretched once per cluster, and others not at all.
func TestStretcher(t *testing.T) {
	var s stretcher
	ca, other := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	if got, err := s.master(token.Server, "x", ca); err != nil || string(got) != "x" || s.known != nil {
		t.Errorf("master of a made secret = %q, %v", got, err)
	}
	one, err := s.master("", "x", ca)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	two, err := s.master(token.Config, "x", ca)
	if err != nil || string(one) != string(two) || time.Since(begin) > 10*time.Millisecond {
		t.Errorf("the second time took %v, error %v", time.Since(begin), err)
	}
	if three, err := s.master("", "x", other); err != nil || string(three) == string(one) {
		t.Errorf("one key for two clusters: %v", err)
	}
}

// TestUnknownTokensTakeAsLong compares what is done for a token that exists and one that does not.
func TestUnknownTokensTakeAsLong(t *testing.T) {
	for _, id := range []string{"", token.Server, "nope"} {
		if got := named(id, "decoy", []tokenRecord{{TokenInfo: TokenInfo{ID: token.Server}, secret: "s"}}); got.secret == "" {
			t.Errorf("named(%q) = %v; want something to try", id, got)
		}
	}
}
