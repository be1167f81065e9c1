package history

import (
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
)

// maxKeys bounds the keys of a history, so that the model's state is a value.
const maxKeys = 8

// store is the model's state: all keys and the revision. Revisions are part
// of it, so a list is judged as one reading of everything, and a header's
// revision binds the reads of other clients.
type store struct {
	revision int64
	entries  [maxKeys]entry
}

// model is a store with these keys, empty at first.
func model(keys []string) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return store{} },
		Step: func(state, input, _ any) (bool, any) {
			o := input.(Operation)
			i := slices.Index(keys, o.Key)
			if len(keys) > maxKeys || (i < 0) != (o.Kind == List) {
				return false, state
			}
			return state.(store).step(o, i, keys)
		},
		Hash:              func(state any) uint64 { return uint64(state.(store).revision) },
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("node %d: %s", input.(Operation).Node, input) },
		DescribeState: func(state any) string {
			s := state.(store)
			text := fmt.Sprintf("revision %d:", s.revision)
			for i, e := range s.entries {
				if e.version != 0 {
					text += " " + e.kv(keys[i]).String()
				}
			}
			return text
		},
	}
}

// step says whether a store in this state can answer o, and its next state. i
// is the index of o's key.
func (s store) step(o Operation, i int, keys []string) (bool, store) {
	if o.Kind.writes() && o.Done {
		now := s.entries[i]
		switch o.Kind {
		case Create:
			if now.modified != 0 {
				return false, s
			}
		case Update, Delete:
			if now.modified != o.Expect {
				return false, s
			}
		}
		if o.Revision <= s.revision {
			return false, s
		}
		next := entry{o.Value, now.created, o.Revision, now.version + 1}
		if now.version == 0 {
			next.created = o.Revision
		}
		if o.Kind == Delete {
			next = entry{}
		}
		s.revision, s.entries[i] = o.Revision, next
		return true, s
	}
	if o.Revision < s.revision || !s.shows(o, i, keys) {
		return false, s
	}
	if o.Kind == Create && s.entries[i].modified == 0 || (o.Kind == Update || o.Kind == Delete) && s.entries[i].modified == o.Expect {
		return false, s // The comparison would have held.
	}
	// From here on the revision is no smaller: a write at or below it that has
	// not been ordered yet would have had to be seen.
	s.revision = o.Revision
	return true, s
}

// shows says whether a read in this state finds what o found. A Create does
// not look.
func (s store) shows(o Operation, i int, keys []string) bool {
	if o.Kind == Create {
		return true
	}
	var want []KV
	for j, e := range s.entries {
		if e.version != 0 && (o.Kind == List || j == i) {
			want = append(want, e.kv(keys[j]))
		}
	}
	if o.Kind == List && o.Count != int64(len(want)) {
		return false
	}
	return slices.Equal(want, o.Found)
}
