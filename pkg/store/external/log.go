package external

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"
	"github.com/sirupsen/logrus"
)

// bridge leads kine's logger to ours. kine logs by logrus' global logger, which
// is set up for good: a database's last messages come after its end.
type bridge struct {
	log    *slog.Logger
	redact func(string) string
	ended  atomic.Bool
}

// Attach leads what kine logs to log until detach, and what it logs when nobody
// is attached nowhere. Messages pass redact, nil for none. Those of requests
// that failed are left out: kine writes them with all values, Secrets too.
//
// A fatal message, which kine writes when a transaction of a compaction cannot
// be ended, ends the goroutine that writes it instead of the process; whoever
// calls what may write one uses isolate.
func Attach(log *slog.Logger, redact func(string) string) (detach func()) {
	b := &bridge{log: log, redact: redact}
	l := logrus.StandardLogger()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.InfoLevel)
	l.ExitFunc = func(int) { runtime.Goexit() }
	l.AddHook(b)
	// The MySQL driver would print each broken connection to standard error.
	_ = mysql.SetLogger(&mysql.NopLogger{}) // fails for nil only
	return func() { b.ended.Store(true) }
}

// Levels is part of logrus.Hook.
func (*bridge) Levels() []logrus.Level { return logrus.AllLevels }

// known are messages of kine's that tell the log nothing new. To kine each
// request that fails is an error, of which it prints all values; so is a
// comparison that was lost to another writer, and each look for changes or expired lease,
// while the database is away. The client is told, and outages tells when
// the database is lost and back.
var known = []string{"error in ", "error while ", "Insert error ", "Retriable insert error ", "Failed to list latest changes", "TTL delete trigger failed"}

// Fire passes a message on. What kine tells at Info is of use to who debugs it.
func (b *bridge) Fire(e *logrus.Entry) error {
	if b.ended.Load() {
		return nil
	}
	for _, prefix := range known {
		if strings.HasPrefix(e.Message, prefix) {
			return nil
		}
	}
	message := strings.TrimSpace(e.Message)
	if b.redact != nil {
		message = b.redact(message)
	}
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	}
	b.log.Log(context.Background(), level, "store: kine: "+message)
	return nil
}

// isolate runs do in a goroutine of its own and reports whether it came to its
// end; false when kine wrote a fatal message in it.
func isolate(do func()) bool {
	done := make(chan bool, 1)
	go func() {
		whole := false
		defer func() { done <- whole }()
		do()
		whole = true
	}()
	return <-done
}
