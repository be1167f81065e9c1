package store

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the writer. Commits are what a slow disk shows in first: each
// waits for a synchronous write, on a majority of the members.
var (
	commitSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "cairn_store_commit_seconds", Help: "Time to commit a transaction.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	})
	commitWrites = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "cairn_store_writes_total", Help: "Writes in committed transactions; several share one.",
	})
)

// Metrics are what a Backend counts, for a registry. They are the process's.
func Metrics() []prometheus.Collector { return []prometheus.Collector{commitSeconds, commitWrites} }
