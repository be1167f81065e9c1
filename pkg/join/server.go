package join

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"

	"github.com/cairn-os/cairn/pkg/pki"
	"github.com/cairn-os/cairn/pkg/token"
)

const (
	// bodyTimeout bounds how long a request may take to arrive, workTimeout what is done for it.
	bodyTimeout = 10 * time.Second
	workTimeout = 20 * time.Second
	// atOnce bounds how many requests are worked on; the others are told to come back.
	atOnce = 16
)

// ServerOptions say what a server answers with. Client, TLSDir, EncryptionFile, PKI and Log are needed.
type ServerOptions struct {
	Client         kubernetes.Interface // with an administrator's rights
	TLSDir         string               // see pki; read anew for each request
	EncryptionFile string
	PKI            func() pki.Options // the own ones: life, floor and clock of what is signed
	// StorePeers returns host:port of the store's members; nil where the store is not Cairn's.
	StorePeers func(context.Context) ([]string, error)
	// MemberOnline tells whether the store's member of that name is; nil: only Leases say who is alive.
	MemberOnline func(ctx context.Context, node string) (bool, error)
	Version      string // of the own Kubernetes, such as v1.36.4
	Log          *slog.Logger
	Now          func() time.Time // nil: time.Now
}

// Server admits machines to the cluster. Its methods may be called at any time.
type Server struct {
	ServerOptions
	stretch  stretcher
	watch    watch
	joining  *limiter
	renewing *limiter // apart, so that guesses at tokens keep no member from coming back
	guesses  *allowance
	busy     chan struct{}
	decoy    string // stands for the secret of a token that does not exist
}

// NewServer returns a server that answers once its Handler is served.
func NewServer(o ServerOptions) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Server{
		ServerOptions: o, watch: watch{now: o.Now}, joining: newLimiter(o.Now), renewing: newLimiter(o.Now),
		guesses: newAllowance(o.Now), busy: make(chan struct{}, atOnce), decoy: rand.Text(),
	}
}

// Handler serves CAPath, JoinPath and RenewPath. It authenticates by itself.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+CAPath, s.serveCA)
	mux.HandleFunc("POST "+JoinPath, func(w http.ResponseWriter, r *http.Request) { s.limited(w, r, s.joining, s.join) })
	mux.HandleFunc("POST "+RenewPath, func(w http.ResponseWriter, r *http.Request) { s.limited(w, r, s.renewing, s.renew) })
	return mux
}

func (s *Server) serveCA(w http.ResponseWriter, _ *http.Request) {
	data, err := os.ReadFile(pki.CertFile(s.TLSDir, pki.ServerCA))
	if err != nil {
		s.Log.Error("join: cannot tell the CA", "error", err)
		writeProblem(w, http.StatusServiceUnavailable, problem{codeUnavailable, "the server cannot read its CA"})
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(data) // a reader that went away is its own affair
}

// limited reads a request's body and lets work answer it, unless too many failed from the same source. work reports
// whether the request was an honest one.
func (s *Server) limited(w http.ResponseWriter, r *http.Request, l *limiter, work func(context.Context, http.ResponseWriter, *http.Request, []byte) bool) {
	from := source(r.RemoteAddr)
	wait, ok := l.take(from)
	if !ok {
		s.Log.Warn("join: too many failures", "from", r.RemoteAddr)
		writeLater(w, http.StatusTooManyRequests, wait, problem{codeLimited, "too many failed requests from this machine's address"})
		return
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		l.giveBack(from)
		writeLater(w, http.StatusServiceUnavailable, 5*time.Second, problem{codeUnavailable, "too many machines are joining at this moment"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
	defer cancel()
	// Not all kinds of connections have a deadline of their own; the body's size is bounded in any case.
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.Log.Debug("join: no deadline", "error", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		writeProblem(w, http.StatusRequestEntityTooLarge, problem{CodeRequest, fmt.Sprintf("the request is longer than %d bytes", maxRequest)})
		return
	}
	if err != nil {
		writeProblem(w, http.StatusBadRequest, problem{codeUnavailable, "the request did not arrive whole"})
		return
	}
	if work(ctx, w, r, body) {
		l.giveBack(from)
	}
}

// writeLater is writeProblem with the time to wait, in whole seconds, rounded up.
func writeLater(w http.ResponseWriter, status int, wait time.Duration, p problem) {
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(wait.Seconds())))))
	writeProblem(w, status, p)
}

func writeProblem(w http.ResponseWriter, status int, p problem) { writeJSON(w, status, p) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "cannot answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(data) // see serveCA
}

// asProblem is what the machine is told of err; what passes is told without its details.
func asProblem(err error) problem {
	var r *Refusal
	if errors.As(err, &r) {
		return problem(*r)
	}
	var c *skewError
	if errors.As(err, &c) {
		return problem{codeClock, c.Error()}
	}
	var b *busyError
	if errors.As(err, &b) {
		return problem{codeUnavailable, b.Error()}
	}
	return problem{codeUnavailable, "the server cannot read or change the cluster's state at the moment"}
}

// authorityHashes returns the SHA-256 of each certificate in the server-ca's file: more than one while it is rotated.
func authorityHashes(file string) ([][sha256.Size]byte, error) {
	certs, err := cert.CertsFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA: %w", err)
	}
	var all [][sha256.Size]byte
	for _, c := range certs {
		all = append(all, sha256.Sum256(c.Raw))
	}
	return all, nil
}

// opened is a join request whose sender knows the secret of a token.
type opened struct {
	token    tokenRecord
	seal     sealer
	request  request
	identity string
	problem  error // with what was inside
}

// open finds the token whose secret e was sealed with. It does the same work whether the named token exists or not.
func (s *Server) open(e *envelope, tokens []tokenRecord) (*opened, error) {
	cas, err := authorityHashes(pki.CertFile(s.TLSDir, pki.ServerCA))
	if err != nil {
		return nil, err
	}
	t := named(e.Token, s.decoy, tokens)
	var found *opened
	for _, ca := range cas {
		master, err := s.stretch.master(e.Token, t.secret, ca)
		if err != nil {
			return nil, err
		}
		seal := sealer{master: master, salt: e.Salt, label: labelRequest, ca: ca, id: e.Token}
		plain, err := seal.open(e.Sealed)
		if err != nil {
			continue
		}
		found = &opened{token: t, seal: seal}
		found.identity, found.problem = found.read(plain)
	}
	if found == nil || found.token.secret == s.decoy {
		return nil, errSealed
	}
	return found, nil
}

// named returns the token with that id, or what stands for one that does not exist.
func named(id, decoy string, tokens []tokenRecord) tokenRecord {
	found := tokenRecord{secret: decoy}
	if id == "" {
		id = token.Config
	}
	for _, t := range tokens {
		// Nothing may be sealed with an empty secret.
		if t.secret != "" && sameText(t.ID, id) {
			found = t
		}
	}
	return found
}

// read decodes the request and checks that its sender has the identity that it names.
func (o *opened) read(plain []byte) (identity string, err error) {
	var m signed
	if err := json.Unmarshal(plain, &m); err != nil {
		return "", refuse(CodeRequest, "the request inside the seal cannot be read: %v", err)
	}
	if err := json.Unmarshal(m.Body, &o.request); err != nil {
		return "", refuse(CodeRequest, "the request inside the seal cannot be read: %v", err)
	}
	identity, ok := m.verify(labelJoin, joinContext(o.seal), o.request.Identity)
	if !ok {
		return "", refuse(CodeRequest, "the machine does not show that it has the identity it names")
	}
	return identity, nil
}

// joinContext binds the identity's signature to one request to one cluster.
func joinContext(s sealer) []byte { return append(append([]byte(nil), s.ca[:]...), s.salt...) }

// openAny is open for the cluster's tokens of this moment.
func (s *Server) openAny(ctx context.Context, e *envelope) (*opened, error) {
	secrets, err := listSecrets(ctx, s.Client, TokenType)
	if err != nil {
		return nil, err
	}
	tokens := make([]tokenRecord, 0, len(secrets))
	for i := range secrets {
		tokens = append(tokens, readToken(&secrets[i]))
	}
	return s.open(e, tokens)
}

// join answers a join request. It reports whether its sender knew a token's secret, or could not be judged.
func (s *Server) join(ctx context.Context, w http.ResponseWriter, r *http.Request, body []byte) bool {
	e, refusal := decodeEnvelope(body)
	if refusal != nil {
		writeProblem(w, http.StatusBadRequest, problem(*refusal))
		return false
	}
	// Those who guess at the one secret that a person chose are counted together. The others cannot be guessed, and are not
	// kept waiting by who tries.
	guess := chosen(e.Token)
	if guess {
		if wait, ok := s.guesses.take(); !ok {
			writeLater(w, http.StatusTooManyRequests, wait, problem{codeLimited,
				"too many wrong secrets from all sides; who has a whole token (\"cairnctl token\") is not kept waiting"})
			return true
		}
	}
	o, err := s.openAny(ctx, e)
	if guess && !errors.Is(err, errSealed) {
		s.guesses.giveBack()
	}
	if errors.Is(err, errSealed) {
		s.Log.Warn("join: token not accepted", "from", r.RemoteAddr, "token", logged(e.Token))
		writeProblem(w, http.StatusUnauthorized, problem(*refuseToken(e.Token)))
		return false
	}
	if err != nil {
		return s.unavailable(w, r, err)
	}
	log := s.Log.With("from", r.RemoteAddr, "token", o.token.ID, "node", logged(o.request.Node), "role", logged(string(o.request.Role)))
	a, err := s.admit(ctx, o)
	switch {
	case err == nil:
		log.Info("join: admitted", "identity", o.identity)
	case asksTime(err):
		log.Info("join: told the time")
	default:
		log.Warn("join: refused", "error", err)
	}
	if err != nil {
		p := asProblem(err)
		a = &answer{Problem: &p}
	}
	a.Time = s.Now()
	if err := s.reply(w, o, a); err != nil {
		return s.unavailable(w, r, err)
	}
	return true
}

// reply seals the answer for who sealed the request.
func (s *Server) reply(w http.ResponseWriter, o *opened, a *answer) error {
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	salt, err := newSalt()
	if err != nil {
		return err
	}
	sealed, err := o.seal.answering(salt).seal(data)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, reply{V: protocolVersion, Salt: salt, Sealed: sealed})
	return nil
}

// unavailable tells the machine to come back.
func (s *Server) unavailable(w http.ResponseWriter, r *http.Request, err error) bool {
	s.Log.Warn("join: cannot answer", "from", r.RemoteAddr, "error", err)
	writeLater(w, http.StatusServiceUnavailable, 5*time.Second, asProblem(err))
	return true
}

func refuseToken(id string) *Refusal {
	if id == "" {
		return refuse(CodeToken, "the server does not accept the token: it is not this cluster's, or the first server's configuration has no such cairn.token")
	}
	return refuse(CodeToken, "the server does not accept the token %s: it was revoked, or its secret is another: copy it again from \"cairnctl token\"", logged(id))
}

// logged bounds what strangers put into logs and messages.
func logged(text string) string {
	if len(text) > 64 {
		text = text[:64]
	}
	return strconv.QuoteToASCII(text)[1 : len(strconv.QuoteToASCII(text))-1]
}

// hostPorts returns the addresses as host:port.
func hostPorts(all []netip.AddrPort) []string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return texts
}
