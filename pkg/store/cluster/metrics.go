package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"golang.org/x/sys/unix"

	"github.com/cairn-os/cairn/pkg/store"
	"github.com/cairn-os/cairn/pkg/store/damage"
)

// scrapeLimit bounds what a scrape waits for.
const scrapeLimit = 2 * time.Second

// metric describes a metric of the store.
func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("cairn_store_"+name, help, labels, nil)
}

// What the store tells of itself. Everything is read when it is asked for:
// counting costs nothing in between.
var (
	metricLeader   = metric("leader", "1 while this member leads.")
	metricHas      = metric("has_leader", "1 while this member knows a leader.")
	metricTerm     = metric("raft_term", "The newest raft term that this member has stored.")
	metricIndex    = metric("raft_log_index", "The last index of this member's complete log segments.")
	metricRole     = metric("member_role", "1 for the role that each member has; told by the leader.", "member", "name", "role")
	metricOnline   = metric("member_online", "1 for members that answer the leader.", "member", "name")
	metricRevision = metric("revision", "The newest revision of the store; told by the leader.")
	metricSize     = metric("size_bytes", "The size of the database; told by the leader.")
	metricPressure = metric("pressure", "How short space is: 0 relaxed, 1 events are given up, 2 writes are refused.")
	metricFiles    = metric("disk_bytes", "What the store's directory takes on the disk.")
	metricWritten  = metric("written_bytes_total", "What this process has sent to disks.")
	metricProbe    = metric("probe_sync_seconds", "A synchronous write of 4 KiB when the member started.")
	metricDisk     = metric("disk_write_seconds", "The mean time of a write on the store's disk since the last scrape, whoever wrote.")
	metricElection = metric("election_timeout_seconds", "The election timeout that follows from the disk's speed.")
)

// collector reads the metrics.
type collector struct {
	node *Node
	last diskTimes
}

// metricsHandler serves the store's and the process's metrics.
func (n *Node) metricsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{node: n}, prometheus.NewGoCollector(), prometheus.NewProcessCollector(prometheus.ProcessCollectorOpts{}))
	registry.MustRegister(store.Metrics()...)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// Describe implements prometheus.Collector: what it sends depends on the role.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	r := c.node.route()
	gauge(metricLeader, flag(r.service != nil))
	gauge(metricHas, flag(r.leader != 0))
	if term, err := c.node.member.Term(); err == nil {
		gauge(metricTerm, float64(term))
	}
	if r.service != nil {
		c.leader(ctx, r.service, gauge)
	}
	gauge(metricFiles, float64(c.node.filesBytes()))
	if index, err := damage.LastClosed(memberDir(c.node.config.Dir)); err == nil {
		gauge(metricIndex, float64(index))
	}
	gauge(metricProbe, c.node.disk.Sync.Seconds())
	gauge(metricElection, c.node.disk.Election.Seconds())
	if written, err := writtenBytes(); err == nil {
		to <- prometheus.MustNewConstMetric(metricWritten, prometheus.CounterValue, written)
	}
	if now, err := readDiskTimes(c.node.config.Dir); err == nil {
		if writes := now.writes - c.last.writes; c.last.writes > 0 && writes > 0 {
			gauge(metricDisk, (now.took-c.last.took).Seconds()/float64(writes))
		}
		c.last = now
	}
}

func (c *collector) leader(ctx context.Context, s *service, gauge func(*prometheus.Desc, float64, ...string)) {
	gauge(metricPressure, float64(s.backend.Pressure()))
	status := c.node.status(ctx, false)
	if status.Revision > 0 {
		gauge(metricRevision, float64(status.Revision))
	}
	if status.Size > 0 {
		gauge(metricSize, float64(status.Size))
	}
	for _, m := range status.Members {
		gauge(metricRole, 1, m.ID.String(), m.Name, m.Role)
		gauge(metricOnline, flag(m.Online), m.ID.String(), m.Name)
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// filesBytes is what the store's directory takes.
func (n *Node) filesBytes() (bytes int64) {
	// A file that vanishes meanwhile is not there.
	_ = filepath.WalkDir(n.config.Dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return bytes
}

// writtenBytes reads what the process has sent to disks (proc_pid_io(5)).
func writtenBytes() (float64, error) {
	self, err := procfs.Self()
	if err != nil {
		return 0, err
	}
	io, err := self.IO()
	return float64(io.WriteBytes), err
}

// diskTimes are counters of a disk.
type diskTimes struct {
	writes uint64
	took   time.Duration
}

// readDiskTimes reads the counters of the disk that holds dir.
func readDiskTimes(dir string) (diskTimes, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return diskTimes{}, err
	}
	block, err := blockdevice.NewDefaultFS()
	if err != nil {
		return diskTimes{}, err
	}
	disks, err := block.ProcDiskstats()
	if err != nil {
		return diskTimes{}, err
	}
	for _, d := range disks {
		if d.MajorNumber == unix.Major(st.Dev) && d.MinorNumber == unix.Minor(st.Dev) {
			return diskTimes{d.WriteIOs, time.Duration(d.WriteTicks) * time.Millisecond}, nil
		}
	}
	return diskTimes{}, fmt.Errorf("no disk statistics for %s", dir)
}
