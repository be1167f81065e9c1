package approver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// answerLimit is how long a kubelet that is asked whether it lives may take.
	answerLimit = 5 * time.Second
	// answerLasts is how long its answer counts: until the request that it was asked for is judged again.
	answerLasts = 15 * time.Second
)

// notReached is how the apiserver says that nothing answered it in the place of a kubelet.
const notReached = "error trying to reach service"

// kubeletAnswers asks a kubelet by the apiserver, and by that by its tunnel, whether it is there. Whatever it says, even that
// something ails it, it says so itself. Only the apiserver's own word that it does not reach it is a no; an error tells
// that it is not known.
func kubeletAnswers(ctx context.Context, client kubernetes.Interface, node string) (bool, error) {
	err := client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("healthz", "ping").Do(ctx).Error()
	switch {
	case err == nil, apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse): // not in the apiserver's words
		return true, nil
	case apierrors.IsServiceUnavailable(err) && strings.Contains(err.Error(), notReached):
		return false, nil
	case apierrors.IsNotFound(err): // there is no Node of that name
		return false, nil
	}
	return false, err
}

// questions are put to kubelets beside the queue: one that is gone takes seconds not to answer, and nobody else's request
// has to wait for that. Methods may be called at any time.
type questions struct {
	ctx     context.Context // of all questions, the approver's Run's
	ask     func(ctx context.Context, node string) (bool, error)
	now     func() time.Time
	running sync.WaitGroup

	mu    sync.Mutex // guards the following
	asked map[string]*question
}

// question is what one kubelet is asked.
type question struct {
	done    chan struct{} // closed with the answer
	at      time.Time     // when it was put
	answers bool
	err     error // it is not known
}

// put asks the kubelets of nodes, all at once, and returns what they said when all of that is known. Until then it returns
// nil, and calls again in the end.
func (q *questions) put(nodes []string, again func()) map[string]*question {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, x := range q.asked {
		if q.now().Sub(x.at) > answerLasts {
			delete(q.asked, name)
		}
	}
	all, open := map[string]*question{}, false
	for _, name := range nodes {
		x := q.asked[name]
		if x == nil {
			x = &question{done: make(chan struct{}), at: q.now()}
			q.asked[name] = x
			q.running.Go(func() { q.answer(name, x) })
		}
		all[name] = x
		select {
		case <-x.done:
		default:
			open = true
		}
	}
	if !open {
		return all
	}
	q.running.Go(func() {
		for _, x := range all {
			<-x.done
		}
		again()
	})
	return nil
}

func (q *questions) answer(node string, x *question) {
	defer close(x.done)
	ctx, cancel := context.WithTimeout(q.ctx, answerLimit)
	defer cancel()
	x.answers, x.err = q.ask(ctx, node)
}

// lives returns why a silent node's machine still has its address, or nil.
func (x *question) lives() error {
	switch {
	case x.err != nil:
		return fmt.Errorf("whether its kubelet answers is not known: %w", x.err)
	case x.answers:
		return errors.New("its kubelet answers")
	}
	return nil
}
