package peer

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestPreamble(t *testing.T) {
	const own, other = 7, 9
	for _, tt := range []struct {
		name string
		call call
		want status
		err  error
	}{
		{"wanted", call{own, other}, statusWelcome, nil},
		{"whoever", call{0, other}, statusWelcome, nil},
		{"another", call{8, other}, statusWrong, ErrWrongMember},
		{"itself", call{own, own}, statusSelf, ErrSelf},
		{"whoever is itself", call{0, own}, statusSelf, ErrSelf},
		{"nobody calls", call{own, 0}, statusInvalid, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := readCall(bytes.NewReader(tt.call.bytes()))
			if err != nil || c != tt.call {
				t.Fatalf("readCall = %v, %v; want %v", c, err, tt.call)
			}
			a, err := readAnswer(bytes.NewReader(answer{c.judge(own), own}.bytes()))
			if err != nil || a != (answer{tt.want, own}) {
				t.Fatalf("answer = %v, %v; want %v", a, err, tt.want)
			}
			err = a.check(c)
			if (err == nil) != (tt.want == statusWelcome) || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("check = %v; want %v", err, tt.err)
			}
		})
	}
}

// TestLyingAnswer has an acceptor welcome calls for others.
func TestLyingAnswer(t *testing.T) {
	if err := (answer{statusWelcome, 8}).check(call{7, 9}); !errors.Is(err, ErrWrongMember) {
		t.Errorf("welcome by another: %v; want ErrWrongMember", err)
	}
	if err := (answer{statusWelcome, 9}).check(call{0, 9}); !errors.Is(err, ErrSelf) {
		t.Errorf("welcome by oneself: %v; want ErrSelf", err)
	}
	if err := (answer{statusWelcome, 0}).check(call{0, 9}); err == nil {
		t.Error("welcome by nobody was taken")
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add(call{1, 2}.bytes(), uint64(1))
	f.Add(answer{statusWrong, 3}.bytes(), uint64(2))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint64(1))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, id uint64) {
		r := bytes.NewReader(data)
		c, err := readCall(r)
		if (err == nil) != (len(data) >= callSize) {
			t.Fatalf("readCall of %d bytes: %v", len(data), err)
		}
		if err == nil {
			if r.Len() != len(data)-callSize || !bytes.Equal(c.bytes(), data[:callSize]) {
				t.Fatalf("readCall took %d bytes as %v", len(data)-r.Len(), c)
			}
			if c.judge(id) == statusWelcome && (c.from == 0 || c.from == id || c.target != 0 && c.target != id) {
				t.Fatalf("%v was welcome to %d", c, id)
			}
		}
		a, err := readAnswer(bytes.NewReader(data))
		if err != nil {
			if len(data) >= answerSize || len(data) > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("readAnswer of %d bytes: %v", len(data), err)
			}
			return
		}
		want := call{id, ^a.id}
		if a.check(want) == nil && (a.status != statusWelcome || id != 0 && a.id != id || a.id == 0) {
			t.Fatalf("%v was taken as the answer to %v", a, want)
		}
	})
}
