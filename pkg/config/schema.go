package config

import (
	"reflect"
	"strings"
)

// field is a key of a mapping, as the struct tags describe it.
type field struct {
	name   string
	typ    reflect.Type
	check  string
	keys   string
	secret bool
	whole  bool
	fuzzy  bool
}

// fields lists the keys that the mapping of struct type t may have.
func fields(t reflect.Type) []field {
	all := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		one := field{name: name, typ: f.Type, check: f.Tag.Get("check"), keys: f.Tag.Get("keys")}
		_, one.secret = f.Tag.Lookup("secret")
		_, one.whole = f.Tag.Lookup("whole")
		_, one.fuzzy = f.Tag.Lookup("k3os")
		all = append(all, one)
	}
	return all
}

// lookup finds the key that text spells in struct type t.
func lookup(t reflect.Type, text string) (field, bool) {
	if t == reflect.TypeFor[Config]() && text == "k3os" {
		text = "cairn"
	}
	all := fields(t)
	for _, f := range all {
		if f.name == text {
			return f, true
		}
	}
	for _, f := range all {
		if f.fuzzy && loose(f.name) == loose(text) {
			return f, true
		}
	}
	return field{}, false
}

// loose is a key without what k3OS does not distinguish: camelCase and underscores, singular and plural.
func loose(key string) string {
	return strings.TrimSuffix(strings.ToLower(strings.ReplaceAll(key, "_", "")), "s")
}

// elsewhere are keys of k3OS that owners will bring and that do not exist here, with what to say about them.
var elsewhere = map[string]string{
	"boot_cmd":     "not supported; use run_cmd, which runs once the network is up",
	"init_cmd":     "not supported; use run_cmd, which runs once the network is up",
	"password":     "not supported: no account has a password; use ssh_authorized_keys",
	"data_sources": "not supported yet",
	"wifi":         "not supported yet",
	"install":      "not supported yet",
	"mode":         "not supported: the disk decides what is started",
}

// unknown says what is wrong with a key that t does not have.
func unknown(t reflect.Type, text string) string {
	if t == reflect.TypeFor[Config]() || t == reflect.TypeFor[Cairn]() {
		for key, message := range elsewhere {
			if loose(key) == loose(text) {
				return message
			}
		}
	}
	switch inTop, inCairn := has(reflect.TypeFor[Config](), text), has(reflect.TypeFor[Cairn](), text); {
	case t == reflect.TypeFor[Config]() && inCairn:
		return "unknown key here; it belongs below cairn"
	case t == reflect.TypeFor[Cairn]() && inTop:
		return "unknown key here; it belongs to the top level"
	}
	best, least := "", 3
	for _, f := range fields(t) {
		if d := distance(text, f.name); d < least && d < len(f.name) {
			best, least = f.name, d
		}
	}
	if best != "" {
		return "unknown key; did you mean " + best + "?"
	}
	return "unknown key; known here: " + names(t)
}

func has(t reflect.Type, text string) bool {
	_, ok := lookup(t, text)
	return ok
}

func names(t reflect.Type) string {
	var all []string
	for _, f := range fields(t) {
		all = append(all, f.name)
	}
	return strings.Join(all, ", ")
}

// distance is Levenshtein's, on bytes; texts of very different length are simply far apart.
func distance(a, b string) int {
	if len(a) > 2*len(b)+2 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
