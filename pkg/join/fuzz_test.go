package join

import (
	"crypto/sha256"
	"encoding/json"
	"testing"
)

// FuzzEnvelope feeds the decoder what anybody can send, and what is sealed with the right key but not by Cairn.
func FuzzEnvelope(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	base := sealer{master: []byte("m"), salt: make([]byte, saltSize), label: labelRequest, ca: sha256.Sum256(nil)}
	m, err := sign(key, labelJoin, joinContext(base), []byte(`{"role":"agent","node":"a"}`))
	if err != nil {
		f.Fatal(err)
	}
	inside, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(envelope{V: 1, Salt: base.salt, Sealed: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(inside)
	f.Add([]byte(`{"v":1,"token":null,"salt":""}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, refusal := decodeEnvelope(data)
		if (e == nil) == (refusal == nil) {
			t.Fatalf("decodeEnvelope = %v, %v", e, refusal)
		}
		if e != nil {
			s := base
			s.salt, s.id = e.Salt, e.Token
			if _, err := s.open(e.Sealed); err == nil {
				t.Error("opened something that was not sealed")
			}
		}
		o := opened{seal: base}
		if _, err := o.read(data); err == nil {
			t.Error("took a request that no identity signed")
		}
	})
}

// FuzzRenewal feeds the decoder of renewals. Nothing but a signature by the named key passes.
func FuzzRenewal(f *testing.F) {
	f.Add([]byte(`{"v":1,"signed":{"body":"e30=","signature":"AAAA"}}`))
	f.Add([]byte(`{"v":1,"signed":{"body":"bnVsbA==","signature":""}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if q, identity, refusal := decodeRenewal(data); refusal == nil {
			t.Errorf("decodeRenewal = %v, %s without a signature", q, identity)
		}
	})
}

func TestRenewalSignature(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		label string
		sign  any
		ok    bool
	}{{"own", labelRenew, key, true}, {"for joining", labelJoin, key, false}, {"another's", labelRenew, other, false}} {
		signer := key
		if tt.sign == any(other) {
			signer = other
		}
		public, err := publicDER(key)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(renewal{Node: "a", Identity: public})
		if err != nil {
			t.Fatal(err)
		}
		m, err := sign(signer, tt.label, nil, body)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(signedRequest{V: 1, Signed: m})
		if err != nil {
			t.Fatal(err)
		}
		_, hash, refusal := decodeRenewal(data)
		if (refusal == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, refusal)
		}
		if want, err := identityHash(&key.PublicKey); err != nil || (tt.ok && hash != want) {
			t.Errorf("%s: hash %s; want %s", tt.name, hash, want)
		}
	}
}
