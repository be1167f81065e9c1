package history

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verdict is the outcome of a check.
type Verdict struct {
	// Problems are what is wrong, one line each; none: the history is right.
	Problems []string
	// Requests counts all requests, Unknown those without an answer, Changes
	// the revisions that watches told of.
	Requests, Unknown, Changes int

	model porcupine.Model
	info  porcupine.LinearizationInfo
}

// Ok says that nothing is wrong.
func (v Verdict) Ok() bool { return len(v.Problems) == 0 }

// patience bounds porcupine's search. Revisions leave it little to try, so
// that a second is much.
const patience = time.Minute

// Check judges the history. Every watch must have reached the last revision
// (see Reached) and no request may be under way.
func (h *History) Check() Verdict {
	var p problems
	ops, streams := h.Operations(), h.Streams()
	slices.SortFunc(ops, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	slices.SortStableFunc(streams, func(a, b Stream) int { return a.Node - b.Node })
	v := Verdict{Requests: len(ops)}
	log := merge(streams, &p)
	v.Changes = len(log.list)
	for _, s := range streams {
		log.checkStream(s, &p)
	}
	known := resolve(ops, log, &p)
	for _, o := range ops {
		if o.unknown() {
			v.Unknown++
		}
		if o.Kind == Past && !o.unknown() {
			checkPast(o, log, &p)
		}
	}
	var result porcupine.CheckResult
	v.model = model(keys(ops))
	result, v.info = porcupine.CheckOperationsVerbose(v.model, known, patience)
	switch result {
	case porcupine.Illegal:
		p.add("not linearizable: %s", explain(known, v.info))
	case porcupine.Unknown:
		p.add("porcupine found no answer within %s: too many requests with unknown outcome?", patience)
	}
	v.Problems = p.lines
	if p.more > 0 {
		v.Problems = append(v.Problems, fmt.Sprintf("and %d more", p.more))
	}
	return v
}

func keys(ops []Operation) []string {
	set := map[string]bool{}
	for _, o := range ops {
		if o.Key != "" {
			set[o.Key] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// resolve compares what clients were told about their writes with the log and
// returns the operations for porcupine. A write with an unknown outcome is
// given the revision that the log has for it, and is left out if it has none:
// a read that saw it nevertheless will not fit.
func resolve(ops []Operation, log *changes, p *problems) []porcupine.Operation {
	byValue, claimed := map[string]int{}, map[int64]bool{}
	for i, x := range log.list {
		if x.Deleted {
			continue
		}
		if other, twice := byValue[x.Value]; twice {
			p.add("one request wrote twice: %v and %v", log.list[other].Event, x.Event)
		}
		byValue[x.Value] = i
	}
	for _, o := range ops {
		if o.Kind.writes() && !o.unknown() {
			checkAnswer(o, log, byValue, claimed, p)
		}
	}
	var known []porcupine.Operation
	var end time.Duration
	for _, o := range ops {
		end = max(end, o.Return)
	}
	for i, o := range ops {
		if o.Kind == Past {
			continue
		}
		client := o.Client
		if o.unknown() {
			at, ok := took(o, log, byValue, claimed)
			if !ok {
				continue
			}
			claimed[at.Modified] = true
			o.Done, o.Revision, o.Return = true, at.Modified, max(o.Call, min(end, at.seen))
			client = 100 + i // The client went on meanwhile.
		}
		known = append(known, porcupine.Operation{
			ClientId: client, Input: o, Output: o, Call: o.Call.Nanoseconds(), Return: o.Return.Nanoseconds(),
		})
	}
	for _, x := range log.list {
		if !claimed[x.Modified] {
			p.add("nobody asked for the change at revision %d: %v", x.Modified, x.Event)
		}
	}
	return known
}

// checkAnswer compares an answered write with the log.
func checkAnswer(o Operation, log *changes, byValue map[string]int, claimed map[int64]bool, p *problems) {
	if !o.Done {
		if i, ok := byValue[o.Value]; ok && o.Value != "" {
			p.add("refused, yet done: the log has %v for\n    %s", log.list[i].Event, o.line())
		}
		return
	}
	i, ok := log.byRev[o.Revision]
	if !ok {
		p.add("lost: no watch told of the acknowledged write\n    %s", o.line())
		return
	}
	claimed[o.Revision] = true
	if x := log.list[i]; x.Key != o.Key || x.Value != o.Value || x.Deleted != (o.Kind == Delete) {
		p.add("lost: at the revision of the acknowledged write there is %v\n    %s", x.Event, o.line())
	}
}

// took finds the change that a write with unknown outcome made, if any.
func took(o Operation, log *changes, byValue map[string]int, claimed map[int64]bool) (change, bool) {
	switch o.Kind {
	case Put, Create, Update:
		i, ok := byValue[o.Value]
		if !ok {
			return change{}, false
		}
		return log.list[i], !claimed[log.list[i].Modified]
	case Delete:
		// At most one deletion replaces a revision. Of several requests for it,
		// the first in order of calls is bound the least.
		for _, x := range log.list {
			if x.Deleted && x.Key == o.Key && x.Prev.Modified == o.Expect && !claimed[x.Modified] {
				return x, true
			}
		}
	}
	return change{}, false
}

// checkPast compares a read of the past with the log: it never changes.
func checkPast(o Operation, log *changes, p *problems) {
	state := log.at(o.Expect)
	found := map[string]entry{}
	for _, kv := range o.Found {
		found[kv.Key] = entry{kv.Value, kv.Created, kv.Modified, kv.Version}
	}
	if !maps.Equal(state, found) || o.Count != int64(len(state)) {
		p.add("the past changed: at revision %d there was %v\n    %s", o.Expect, state, o.line())
	}
}

// explain names the request for which there is no place: of those that the
// longest order found does not hold, the one that ended first. Before it, it
// shows the end of that order.
func explain(all []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	const shown = 5
	var b strings.Builder
	fmt.Fprintf(&b, "an order of %d requests fits, which ends in", len(longest))
	placed := map[string]bool{}
	for i, o := range longest {
		line := o.Input.(Operation).line()
		placed[line] = true
		if i >= len(longest)-shown {
			fmt.Fprintf(&b, "\n    %s", line)
		}
	}
	var first *Operation
	for _, o := range all {
		if o := o.Input.(Operation); !placed[o.line()] && (first == nil || o.Return < first.Return) {
			first = &o
		}
	}
	if first != nil {
		fmt.Fprintf(&b, "\n  but there is no place for\n    %s", first.line())
	}
	return b.String()
}

// Visualize writes porcupine's page, on which the requests can be looked at.
func (v Verdict) Visualize(w io.Writer) error { return porcupine.Visualize(v.model, v.info, w) }

// Write writes everything recorded as text, in order of time.
func (h *History) Write(w io.Writer) error {
	type line struct {
		at   time.Duration
		text string
	}
	var lines []line
	for _, o := range h.Operations() {
		lines = append(lines, line{o.Call, o.line()})
	}
	for _, s := range h.Streams() {
		for _, i := range s.Items {
			text := i.Event.String()
			if i.Progress != 0 {
				text = fmt.Sprintf("all up to %d", i.Progress)
			}
			lines = append(lines, line{i.At, fmt.Sprintf("%9.4fs %10s %s: %s", i.At.Seconds(), "", s, text)})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, l.text); err != nil {
			return err
		}
	}
	return nil
}
