package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-os/cairn/pkg/build/releasedir/verify"
	"github.com/cairn-os/cairn/pkg/release"
)

func releaseCommand(root string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "release",
		Short:   "Serve and check what machines upgrade from, and keep its keys",
		Long:    "Serve and check release directories, which ./build.sh release makes, and keep the keys that sign them. This needs no node.",
		GroupID: "upgrade",
		Args:    usage(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(releaseServeCommand(), releaseVerifyCommand(root), releaseKeysCommand())
	return cmd
}

func releaseServeCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "serve DIR",
		Short: "Serve a release directory to machines, until interrupted",
		Long: "Serve a release directory to machines, until interrupted. Any web server does: the directory has only files, and a\n" +
			"download that breaks off goes on where it was.",
		Example: "  cairnctl release serve /mnt/usb/release\n  cairnctl release serve out/amd64/release --listen 192.168.1.5:8000",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveRelease(cmd.Context(), args[0], listen, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":8080", "address and port to listen on")
	return cmd
}

func serveRelease(ctx context.Context, dir, listen string, out io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, "metadata", "timestamp.json")); err != nil {
		return fmt.Errorf("%s is no release directory: %w", dir, err)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Serving %s at http://%s\n", dir, l.Addr())
	s := &http.Server{Handler: releaseHandler(dir), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// releaseHandler serves files and no lists of them.
func releaseHandler(dir string) http.Handler {
	files := http.FileServerFS(filesOnly{os.DirFS(dir)})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream") // chunks need not be looked into
		w.Header().Set("X-Content-Type-Options", "nosniff")
		files.ServeHTTP(w, r)
	})
}

// filesOnly hides directories.
type filesOnly struct{ fs.FS }

// Open implements fs.FS.
func (f filesOnly) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func releaseVerifyCommand(root string) *cobra.Command {
	var anchor string
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check all signatures and all chunks of a release directory",
		Long: "Check all signatures and all chunks of a release directory, and print what it holds. Trust begins at the root metadata\n" +
			"that --root names: by default those of this machine (" + release.AnchorPath + "), or, elsewhere, the directory's own\n" +
			"first ones, which only shows that it is whole.",
		Example: "  cairnctl release verify /mnt/usb/release\n  cairnctl release verify out/amd64/release --root keys/1.root.json",
		Args:    usage(cobra.ExactArgs(1)),
	}
	cmd.Flags().StringVar(&anchor, "root", "", "trusted root metadata, a `FILE`")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		trusted, own, err := readAnchor(anchor, filepath.Join(root, release.AnchorPath), args[0])
		if err != nil {
			return err
		}
		report, err := verify.Directory(cmd.Context(), args[0], trusted, time.Now())
		if err != nil {
			return fmt.Errorf("%s is not right: %w", args[0], err)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), report)
		}
		return printReleases(cmd.OutOrStdout(), report, own)
	}
	return cmd
}

// readAnchor returns the trusted root metadata; own tells that they are the
// directory's.
func readAnchor(flag, machine, dir string) (data []byte, own bool, err error) {
	if flag != "" {
		data, err = os.ReadFile(flag)
		return data, false, err
	}
	data, err = os.ReadFile(machine)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(filepath.Join(dir, "metadata", "1.root.json"))
		own = true
	}
	return data, own, err
}

func printReleases(out io.Writer, r *verify.Report, own bool) error {
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	for _, one := range r.Releases {
		fmt.Fprintf(out, "Release %s for %s, Kubernetes %s: images of %.1f MB; full download %.1f MB in %d chunks\n",
			one.Version, one.Target, one.Kubernetes, mb(one.Size), mb(one.Full), one.Chunks)
		for _, u := range one.Updates {
			note := ""
			if !u.Checked {
				note = " (only their lengths are checked: that version is not here)"
			}
			fmt.Fprintf(out, "  from %s: %d deltas, %.1f MB%s\n", u.From, u.Deltas, mb(u.Size), note)
		}
	}
	for _, c := range r.Channels {
		floor := ""
		if c.Floor != "" {
			floor = ", floor " + c.Floor
		}
		fmt.Fprintf(out, "Channel %s of %s: %s%s\n", c.Name, c.Target, c.Version, floor)
	}
	trust := "Signatures and chunks are right"
	if own {
		trust = "Chunks are right, and signatures by the directory's own keys: name the keys that you trust with --root"
	}
	_, err := fmt.Fprintf(out, "%s; valid until %s\n", trust, r.Expires.Format(time.RFC3339))
	return err
}
