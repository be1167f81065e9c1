package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	// sweepStep is how many revisions one transaction of the sweep covers:
	// more would keep writers waiting, fewer would write pages repeatedly.
	sweepStep = 500
	// sweepAgain is how long the sweeper waits after it failed.
	sweepAgain = time.Minute
)

// Compact makes revisions before revision unreadable, at once and durably;
// their rows are removed in the background. It returns the current revision.
func (b *Backend) Compact(ctx context.Context, revision int64) (int64, error) {
	current := b.current.Load()
	switch {
	case revision > current:
		return current, server.ErrFutureRev
	case revision <= b.compacted.Load():
		return current, server.ErrCompacted
	}
	// Synced watches get what they are owed before it can go.
	b.feed.waitPublished(ctx, revision)
	if _, err := b.writer.do(ctx, b.stopped, write{statements: []statement{newStatement(sqlCompact, revision)}}); err != nil {
		return current, toEtcd(err)
	}
	advance(&b.compacted, revision)
	b.pokeSweeper()
	return current, nil
}

// pokeSweeper has the sweeper look at what there is to do.
func (b *Backend) pokeSweeper() {
	select {
	case b.sweepPoke <- struct{}{}:
	default:
	}
}

// sweeper removes the rows that compaction left unreadable, in steps, and
// compacts by itself when the history grows beyond its bound.
func (b *Backend) sweeper(ctx context.Context) {
	ticker := time.NewTicker(sweepAgain)
	defer ticker.Stop()
	for {
		b.retain(ctx)
		if err := b.sweep(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("store: sweep", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-b.sweepPoke:
		case <-ticker.C:
		}
	}
}

// retain compacts what exceeds the bound on history: nobody else does when the
// apiserver's own compaction, every five minutes, is missing or too slow.
func (b *Backend) retain(ctx context.Context) {
	if !b.overgrown(b.current.Load()) {
		return
	}
	target := b.current.Load() - b.maxHistory
	b.log.Debug("store: history is over its bound", "compact", target, "bound", b.maxHistory)
	if _, err := b.Compact(ctx, target); err != nil && ctx.Err() == nil {
		b.log.Warn("store: compact", "revision", target, "error", err)
	}
}

// overgrown says that the history up to a revision is over its bound by a
// quarter: compaction in smaller steps would write pages again and again.
func (b *Backend) overgrown(newest int64) bool {
	return newest-b.compacted.Load() > b.maxHistory+b.maxHistory/4
}

// sweep removes rows up to the compact revision. It goes on where it was, so
// a crash loses nothing and repeats nothing.
func (b *Backend) sweep(ctx context.Context) error {
	for to := b.compacted.Load(); b.swept < to && ctx.Err() == nil; {
		next := min(b.swept+sweepStep, to)
		_, err := b.writer.do(ctx, b.stopped, write{statements: []statement{
			newStatement(sqlSweepReplaced, b.swept, next),
			newStatement(sqlSweepTombstones, b.swept, next),
			newStatement(sqlSwept, next),
		}})
		if err != nil {
			return fmt.Errorf("sweep %d-%d: %w", b.swept, next, err)
		}
		b.swept = next
		if next == to {
			b.index.compact(to)
		}
	}
	return nil
}

// readMeta loads what the database says of itself.
func (b *Backend) readMeta(ctx context.Context) error {
	var version, compacted int64
	err := b.reader.each(ctx, sqlMeta, nil, func(rows *sql.Rows) error {
		return rows.Scan(&version, &compacted, &b.swept)
	})
	if err != nil {
		return fmt.Errorf("read meta: %w", err)
	}
	if version != format {
		return fmt.Errorf("read meta: format %d; this release reads format %d", version, format)
	}
	b.compacted.Store(compacted)
	return nil
}
