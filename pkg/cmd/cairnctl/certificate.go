package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/control/admin"
)

const certificateLong = `Look at this server's certificates, and replace the cluster's authorities.

Certificates are renewed by themselves. Authorities live for ten years and are replaced by a command: before they end, or
because an authority's key or a kubeconfig came into wrong hands. Against a stolen token "cairnctl token revoke" helps,
and not this. Nor is it enough after the loss of a server's disk: the keys of service account tokens and of Secrets at rest
are not replaced.`

func certificateCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certificate", Short: "Look at certificates and replace the authorities", GroupID: "cluster", Long: certificateLong,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(certificateListCommand(n), certificateRotateCommand(n))
	return cmd
}

func certificateListCommand(n node) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List this server's certificates: name, authority, end",
		Long: "List this server's certificates with the authorities that signed them and their ends. Authorities come first. One that\n" +
			"is only trusted signs nothing: it was replaced a moment ago, or is about to replace another.",
		Example: "  cairnctl certificate list\n  cairnctl certificate list --output json",
		Args:    usage(cobra.NoArgs),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		var all []admin.Certificate
		err = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
			all, err = c.Certificates(ctx)
			return err
		})
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(cmd.OutOrStdout(), all)
		}
		return printCertificates(cmd.OutOrStdout(), all)
	}
	return cmd
}

func printCertificates(w io.Writer, all []admin.Certificate) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "NAME\tAUTHORITY\tENDS\tIN\n")
	for _, c := range all {
		issuer := dash(c.Issuer != "", c.Issuer)
		switch {
		case c.Idle:
			issuer += " (itself, only trusted)"
		case c.Authority:
			issuer += " (itself)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, issuer, c.Expires.UTC().Format(time.DateTime), span(c.Left))
	}
	return t.Flush()
}

const rotateLong = `Replace all of the cluster's authorities, and with them all certificates, while the cluster runs.

It takes some ten minutes and three stages: all machines trust the new authorities beside the old ones; the new ones sign,
and all machines get new certificates; the old ones are not trusted any more. Pods, Services and the API go on. Sessions of
"kubectl exec" and "kubectl logs -f" end once, and can be begun again at once.

At the end kubeconfigs that "cairnctl kubeconfig" made before are worthless: make new ones afterwards. In tokens the K10
hash of the authority is another; the secret stays, so a stolen token must be revoked.

Programs that read "kube-root-ca.crt" once, when they start, believe the API through one replacement and not through two:
before the next one restart the pods that are older than this one.

All servers and witnesses must be there, and are waited for. An agent that is off meanwhile comes back by itself. No
server can join until it is done.

This command shows how it goes until it is done. When it is interrupted the replacement goes on: "cairnctl cluster
status" shows it on any server.`

// rotateInterval is how often the progress is asked for.
const rotateInterval = 2 * time.Second

func certificateRotateCommand(n node) *cobra.Command {
	var yes, noWait bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the cluster's authorities", Long: rotateLong,
		Example: "  cairnctl certificate rotate\n  cairnctl certificate rotate --yes --no-wait",
		Args:    usage(cobra.NoArgs),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without a question")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "end when it has begun")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		if _, err := n.rotate(cmd, true); err != nil { // before a question that would be for nothing
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "All authorities of the cluster will be replaced. Kubeconfigs of before and the K10 hash in tokens are worthless\n"+
			"afterwards, and sessions of kubectl exec and logs end once.")
		if err := confirm(cmd, yes, "rotate"); err != nil {
			return err
		}
		r, err := n.rotate(cmd, false)
		if err == nil && !noWait {
			r, err = n.followRotation(cmd, r)
		}
		switch {
		case err != nil:
			return err
		case asJSON:
			return printJSON(cmd.OutOrStdout(), r)
		case noWait:
			fmt.Fprintln(cmd.OutOrStdout(), "The replacement has begun: see 'cairnctl cluster status'.")
		default:
			fmt.Fprintln(cmd.OutOrStdout(), "All authorities are replaced. Make new kubeconfigs with 'cairnctl kubeconfig', and give machines that are\n"+
				"to join new tokens: 'cairnctl token show agent'.")
		}
		return nil
	}
	return cmd
}

// rotate begins the replacement, or asks whether it could begin.
func (n node) rotate(cmd *cobra.Command, check bool) (r admin.Rotation, err error) {
	err = n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
		r, err = c.Rotate(ctx, admin.RotationRequest{Check: check})
		return err
	})
	return r, err
}

// followRotation shows how the replacement goes until it is done. A control plane that does not answer for a while is
// waited for: its machine may have lost power, and the others go on.
func (n node) followRotation(cmd *cobra.Command, r admin.Rotation) (admin.Rotation, error) {
	id, last := r.ID, ""
	for {
		if text := rotationText(r); text != last {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s  %s\n", time.Now().Format(time.TimeOnly), text)
			last = text
		}
		select {
		case <-cmd.Context().Done():
			return r, errors.New("interrupted: the replacement goes on, see 'cairnctl cluster status'")
		case <-time.After(rotateInterval):
		}
		var now admin.Rotation
		err := n.askControl(cmd.Context(), func(ctx context.Context, c *admin.Client) (err error) {
			now, err = c.Rotation(ctx)
			return err
		})
		switch {
		case cmd.Context().Err() != nil:
			continue
		case err != nil:
			if text := "no answer: " + err.Error(); text != last {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s  %s\n", time.Now().Format(time.TimeOnly), text)
				last = text
			}
		case now.ID == "" && now.Authority == id:
			return now, nil
		case now.ID != id:
			return now, errors.New("the replacement has ended before it was done: see 'kubectl get events -A', and begin it again")
		default:
			r = now
		}
	}
}

// rotationText says how far a replacement is in a line of a terminal's width, or more of them.
func rotationText(r admin.Rotation) string {
	what := map[string]string{
		"trust":  "1/3 trust: all servers trust the new authorities",
		"sign":   "2/3 sign: the new authorities sign, all machines get new certificates",
		"retire": "3/3 retire: the old authorities are not trusted any more",
	}[r.Stage]
	if what == "" {
		what = r.Stage
	}
	for _, w := range r.Waiting {
		what += "\n          waits: " + w
	}
	if len(r.Waiting) == 0 && r.Stage != "retire" {
		what += "\n          all have come so far; for some minutes those follow who reread files now and then"
	}
	return what
}

// rotationLate is how long a stage may wait before a person should look.
const rotationLate = 20 * time.Minute

// rotationProblem is what a person should look at, "" for nothing.
func rotationProblem(r *admin.Rotation, now time.Time) string {
	if r == nil || len(r.Waiting) == 0 || now.Sub(r.Since) < rotationLate {
		return ""
	}
	return "the replacement of the authorities waits: " + strings.Join(r.Waiting, "; ")
}

// printRotation adds a replacement under way to the first lines about a cluster.
func printRotation(w io.Writer, r *admin.Rotation, now time.Time) {
	if r == nil {
		return
	}
	state := "the stage settles for " + span(r.Settles)
	switch {
	case len(r.Waiting) > 0:
		state = fmt.Sprintf("waits for %d", len(r.Waiting))
	case r.Settles == 0:
		state = "goes on"
	}
	rank := slices.Index([]string{"trust", "sign", "retire"}, r.Stage) + 1
	fmt.Fprintf(w, "Authorities\tare replaced: stage %d of 3 (%s) since %s, %s\n", rank, r.Stage, span(now.Sub(r.Since)), state)
	for _, text := range r.Waiting {
		fmt.Fprintf(w, "\t%s\n", text)
	}
}
