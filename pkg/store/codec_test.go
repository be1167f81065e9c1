package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func testCodec(t testing.TB) *codec {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCodec(t *testing.T) {
	c := testCodec(t)
	random := make([]byte, 4000)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	manifest := strings.Repeat(`{"name":"a","image":"registry.example/app:1"},`, 40)
	for name, tc := range map[string]struct {
		value string
		first int // byte of the column, -1 for an empty one
	}{
		"empty":          {"", -1},
		"short":          {"1", codecRaw},
		"just too short": {strings.Repeat("a", compressFrom-1), codecRaw},
		"long enough":    {strings.Repeat("a", compressFrom), codecZstd},
		"manifest":       {manifest, codecZstd},
		"random":         {string(random), codecRaw},
		"encrypted":      {"k8s:enc:secretbox:v1:key1:" + manifest, codecRaw},
		"largest":        {strings.Repeat(manifest, maxRequestBytes/len(manifest)), codecZstd},
	} {
		t.Run(name, func(t *testing.T) {
			column := c.encode([]byte(tc.value))
			if column == nil {
				t.Fatal("encode gives nil; the column is NOT NULL")
			}
			first := -1
			if len(column) > 0 {
				first = int(column[0])
			}
			if first != tc.first {
				t.Errorf("encode starts with %d; want %d", first, tc.first)
			}
			if len(column) > len(tc.value)+1 {
				t.Errorf("encode gives %d bytes for %d", len(column), len(tc.value))
			}
			if spare := cap(column) - len(column); spare > len(column)/4+16 {
				t.Errorf("encode keeps %d bytes more than the %d of the column", spare, len(column))
			}
			got, err := c.decode(column)
			if err != nil || string(got) != tc.value {
				t.Errorf("decode gives %d bytes, %v; want the value of %d", len(got), err, len(tc.value))
			}
		})
	}
}

// TestDictionary pins the dictionary: values in databases cannot be read with
// another.
func TestDictionary(t *testing.T) {
	const want = "f6c700fc3edfcc2f882b98206278b49156fda2f518f5390502a0aff599906699"
	if got := fmt.Sprintf("%x", sha256.Sum256(dictionary1)); got != want {
		t.Errorf("dictionary 1 has changed: SHA-256 %s; want %s. Make it another codec instead", got, want)
	}
	column, err := hex.DecodeString("0128b52ffd21019d25020034023163397d7d206f662074696c6c2d3720616e64382c20696e2074686973206f7264657209005c866d3644c0511e40cef0403b61013e3201d674b2d15058026a3d0804")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := testCodec(t).decode(column); err != nil || string(got) != pinned {
		t.Errorf("decode of a column of old = %q, %v; want %q", got, err, pinned)
	}
}

const pinned = `{"f:metadata":{"f:ownerReferences":{".":{},"k:{\"uid\":\"1c9e\"}":{}}},"f:spec":{"f:renewTime":{},"f:holderIdentity":{}}} of till-7 and till-8, in this order`

func TestCodecRefuses(t *testing.T) {
	c := testCodec(t)
	packed := c.encode(bytes.Repeat([]byte("value "), 100))
	bomb := c.encoder.EncodeAll(make([]byte, valueLimit+1), []byte{codecZstd})
	for name, column := range map[string][]byte{
		"unknown codec": {7, 1, 2, 3},
		"no frame":      {codecZstd},
		"cut frame":     packed[:len(packed)-3],
		"too large":     bomb,
	} {
		if got, err := c.decode(column); status.Code(err) != codes.DataLoss {
			t.Errorf("decode of %s = %d bytes, %v; want DataLoss", name, len(got), err)
		}
	}
}

func FuzzCodec(f *testing.F) {
	c := testCodec(f)
	f.Add([]byte(nil))
	f.Add([]byte("k8s:enc:aescbc:v1:k:xyz"))
	f.Add(bytes.Repeat([]byte("k8s\x00\n\x0b\n\x02v1\x12\x05Event"), 30))
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := c.decode(c.encode(value))
		if err != nil || !bytes.Equal(got, value) {
			t.Errorf("decode(encode(%q)) = %q, %v", value, got, err)
		}
		_, _ = c.decode(value) // Whatever a column holds, no crash.
	})
}
