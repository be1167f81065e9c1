package store

import "testing"

// TestEndedStreamStartsNothing: a request that is read while the stream ends
// starts no task that nobody waits for.
func TestEndedStreamStartsNothing(t *testing.T) {
	s := &stream{}
	ran := make(chan struct{})
	if !s.start(func() { close(ran) }) {
		t.Fatal("a stream that goes on starts no task")
	}
	<-ran
	s.ended = true
	if s.start(func() { t.Error("a task of an ended stream runs") }) {
		t.Error("a stream that has ended says that it has started a task")
	}
	s.tasks.Wait()
}
