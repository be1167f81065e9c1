package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/cairn-os/cairn/pkg/release"
	"github.com/cairn-os/cairn/pkg/slot"
	"github.com/cairn-os/cairn/pkg/update/history"
)

// Plan is what a run does, or would do. Its JSON field names are stable, as those of the types in it.
type Plan struct {
	From release.Info `json:"from"`
	To   release.Info `json:"to"`
	Slot slot.Slot    `json:"slot"` // the one that is written
	// Current says that To runs already and there is nothing to do.
	Current bool `json:"current,omitempty"`
	// Refused are the reasons why the machine must not go to To now; the rest of the plan is empty then.
	Refused []string `json:"refused,omitempty"`
	// Resumes is the attempt that goes on; "" when a new one begins.
	Resumes string      `json:"resumes,omitempty"`
	Images  []ImagePlan `json:"images,omitempty"`
	// Estimated says that the release does not tell its chunks' sizes, so Download is an upper bound.
	Estimated bool `json:"estimated,omitempty"`
	NoReboot  bool `json:"no_reboot,omitempty"`
}

// ImagePlan counts the bytes of one image.
type ImagePlan struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"`     // of the image
	Present  int64  `json:"present"`  // in place already
	Zero     int64  `json:"zero"`     // that are zero
	Reuse    int64  `json:"reuse"`    // taken from the running slot
	Fetch    int64  `json:"fetch"`    // that have to come from the source
	Download int64  `json:"download"` // what Fetch is over the line
	Deltas   int    `json:"deltas"`   // chunks that come as deltas
	Chunks   int    `json:"chunks"`   // chunks that come whole
}

// Download is what is left to fetch, in bytes over the line.
func (p Plan) Download() int64 {
	var n int64
	for _, i := range p.Images {
		n += i.Download
	}
	return n
}

// Steps are what Run does, in words.
func (p Plan) Steps() []string {
	if p.Current || len(p.Refused) > 0 {
		return nil
	}
	s := []string{
		fmt.Sprintf("write %s to slot %s, %s to download", p.To.Version, p.Slot, history.Bytes(p.Download())),
		"read the slot back and compare it with the signed digests",
		"take a snapshot of the store, where this machine has one",
		fmt.Sprintf("arm slot %s for a trial", p.Slot),
	}
	if p.NoReboot {
		return append(s, "wait for the operator's reboot")
	}
	return append(s, "drain the node and reboot")
}

// refusal is the plan's reasons as an error.
func (p Plan) refusal() error {
	return fmt.Errorf("upgrade to %s: %w: %s", p.To.Version, ErrRefused, strings.Join(p.Refused, "; "))
}

// String is the plan for a person, in lines.
func (p Plan) String() string {
	var b strings.Builder
	if p.Current {
		return fmt.Sprintf("This machine runs %s already.\n", p.To.Version)
	}
	fmt.Fprintf(&b, "Upgrade from %s to %s.\n", p.From.Version, p.To.Version)
	if len(p.Refused) > 0 {
		b.WriteString("It is refused:\n")
		for _, r := range p.Refused {
			fmt.Fprintf(&b, "  * %s\n", r)
		}
		return b.String()
	}
	if p.Resumes != "" {
		fmt.Fprintf(&b, "It goes on with attempt %s.\n", p.Resumes)
	}
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tSIZE\tIN PLACE\tFROM RUNNING SLOT\tDOWNLOAD\tCHUNKS\tDELTAS")
	for _, i := range p.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\n", i.Name, history.Bytes(i.Size), history.Bytes(i.Present), history.Bytes(i.Reuse),
			history.Bytes(i.Download), i.Chunks, i.Deltas)
	}
	_ = w.Flush() // writes to memory
	if p.Estimated {
		b.WriteString("The release does not say how far its chunks are compressed; less may be downloaded.\n")
	}
	for i, s := range p.Steps() {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	return b.String()
}

// count fills an ImagePlan from what survey found.
func (im *image) count() ImagePlan {
	p := ImagePlan{Name: im.Name, Size: im.Size, Present: im.Data}
	zero, local, remote := im.jobs()
	bytes := func(jobs []job) (n int64) {
		for _, j := range jobs {
			n += int64(j.ref.Size) * int64(len(j.places))
		}
		return n
	}
	p.Zero, p.Reuse, p.Fetch = bytes(zero), bytes(local), bytes(remote)
	p.Present -= p.Zero + p.Reuse + p.Fetch
	for _, j := range remote {
		p.Download += j.download()
		if j.delta != nil {
			p.Deltas++
		} else {
			p.Chunks++
		}
	}
	return p
}

// resolve finds out which release is wanted, and whether the machine may go there.
func (r *run) resolve(ctx context.Context) error {
	channel, err := r.o.Trust.Channel(ctx)
	if err != nil {
		return fmt.Errorf("read the channel: %w", err)
	}
	version := r.request.Version
	if version == "" {
		version = channel.Version
	}
	r.plan.To.Version = version
	r.plan.Current = version == r.o.Running.Version
	if r.plan.Current {
		return nil
	}
	if err := r.refuseNow(version, channel); err != nil || len(r.plan.Refused) > 0 {
		return err
	}
	if r.manifest, err = r.o.Trust.Manifest(ctx, version); err != nil {
		return fmt.Errorf("read the manifest of %s: %w", version, err)
	}
	r.plan.To = r.manifest.Info
	r.refuseRelease(version)
	if r.o.Callbacks.Check != nil && len(r.plan.Refused) == 0 {
		r.plan.Refused, err = r.o.Callbacks.Check(ctx, r.manifest)
	}
	return err
}

func (r *run) refuse(format string, args ...any) {
	r.plan.Refused = append(r.plan.Refused, fmt.Sprintf(format, args...))
}

// refuseNow looks at the machine's state and at what is known of the version.
func (r *run) refuseNow(version string, channel release.Channel) error {
	running := r.o.Running
	if channel.Floor != "" && release.Compare(version, channel.Floor) < 0 {
		r.refuse("version %s is below %s, the oldest that the channel still allows", version, channel.Floor)
	}
	if r.request.Version == "" && release.Compare(version, running.Version) < 0 {
		r.refuse("the channel's newest version, %s, is older than %s, which runs: say --to %s to go back", version, running.Version, version)
	}
	return errors.Join(r.refuseVersion(version), r.refuseState(version))
}

// refuseVersion looks at what the machine knows of the version.
func (r *run) refuseVersion(version string) error {
	q, found, err := r.o.History.InQuarantine(version)
	if err != nil {
		return err
	}
	if found {
		r.refuse("version %s is in quarantine because %s: see \"cairnctl upgrade quarantine\"", version, q.Reason)
	}
	return nil
}

// refuseState looks at what is under way.
func (r *run) refuseState(version string) error {
	running := r.o.Running
	now, err := r.o.Bootloader.Read()
	switch {
	case errors.Is(err, slot.ErrInvalid):
		r.refuse("the boot selector's state is damaged: reboot, it is repaired when the machine starts")
		return nil
	case err != nil:
		return fmt.Errorf("read the boot selector's state: %w", err)
	case now.Trial == running.Slot:
		r.refuse("version %s is on trial itself: wait until it is confirmed, or roll back", running.Version)
	case now.Trial != slot.None:
		r.refuse("slot %s is armed already and starts at the next boot: reboot, or cancel that upgrade", now.Trial)
	case now.Confirmed != running.Slot:
		r.refuse("slot %s runs and slot %s is the confirmed one: reboot first", running.Slot, now.Confirmed)
	}
	st, found, err := r.o.History.State()
	if err != nil {
		return err
	}
	if found && now.Trial == slot.None && st.WasArmed(now) {
		r.refuse("the trial of %s has ended and was not judged yet: try again in a minute, or cancel that upgrade", st.Version)
	}
	if found && st.Version == version {
		r.plan.Resumes = st.Attempt
	}
	return nil
}

// refuseRelease looks at what the release says of itself.
func (r *run) refuseRelease(version string) {
	m, running := r.manifest, r.o.Running
	if m.Version != version {
		r.refuse("the manifest of version %s is that of %s: the release directory is mixed up", version, m.Version)
	}
	if m.Target != running.Target {
		r.refuse("the release is for %s and this machine is %s", m.Target, running.Target)
	}
	if m.From != "" && release.Compare(running.Version, m.From) < 0 {
		r.refuse("version %s cannot be reached from %s directly: go to %s first", version, running.Version, m.From)
	}
	if release.KubernetesSkips(running.Kubernetes, m.Kubernetes) {
		r.refuse("Kubernetes cannot go from %s to %s in one step: only to the next minor version, and not back", running.Kubernetes, m.Kubernetes)
	}
	for _, name := range []string{release.BootImage, release.RootImage} {
		if !slices.ContainsFunc(m.Images, func(i release.Image) bool { return i.Name == name }) {
			r.refuse("the release has no %s image", name)
		}
	}
}
