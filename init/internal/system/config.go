package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-os/cairn/init/internal/guard"
	"github.com/cairn-os/cairn/pkg/atomicfile"
	"github.com/cairn-os/cairn/pkg/cmdline"
	"github.com/cairn-os/cairn/pkg/config"
)

// Places of the configuration on a node, below the root.
const (
	seedConfig      = "run/cairn/sys/seed/config.yaml"
	ownerConfig     = "var/lib/cairn/config.yaml"
	ownerConfigDir  = "var/lib/cairn/config.d"
	lastGoodConfig  = "var/lib/cairn/config/last-good.yaml"
	effectiveConfig = "run/cairn/config.yaml"
)

func (m *machine) loadConfig(context.Context) error {
	c, err := mergeConfig("/", m.opt.Line, m.seedErr, m.log.Printf)
	if err != nil {
		return err
	}
	m.config = c
	m.setDeadline(c.Cairn.Health.Deadline())
	return nil
}

// mergeConfig puts the sources together and leaves the effective document for the other processes. When a source is
// bad, or could not be read (seedErr is why the seed's partition could not), the last good configuration is used as a
// whole, never half of the new one; without one it is an error.
func mergeConfig(root string, line cmdline.Line, seedErr error, logf guard.Logf) (*config.Config, error) {
	lastGood := filepath.Join(root, lastGoodConfig)
	sources, err := sources(root, line)
	if seedErr != nil {
		err = errors.Join(fmt.Errorf("the seed configuration cannot be read: %w", seedErr), err)
	}
	var c *config.Config
	var document []byte
	if err == nil {
		c, document, err = config.Merge(sources)
	}
	if err != nil {
		old, readErr := os.ReadFile(lastGood)
		if readErr != nil {
			return nil, err
		}
		if c, readErr = config.Parse(lastGood, old); readErr != nil && !errors.Is(readErr, config.ErrNoConfig) {
			return nil, errors.Join(err, fmt.Errorf("the last good configuration cannot be used either: %w", readErr))
		}
		if c == nil {
			c = &config.Config{}
		}
		logf("THE CONFIGURATION IS WRONG OR CANNOT BE READ; the last good one is used:")
		for text := range strings.SplitSeq(err.Error(), "\n") {
			logf("  %s", text)
		}
		document = old
	} else if old, readErr := os.ReadFile(lastGood); readErr != nil || !bytes.Equal(old, document) {
		if err := atomicfile.Write(lastGood, document, 0o600); err != nil {
			logf("the configuration is not kept as the last good one: %v", err)
		}
	}
	for _, text := range config.Warnings(c, line) {
		logf("warning: %s", text)
	}
	if err := atomicfile.Write(filepath.Join(root, effectiveConfig), document, 0o600); err != nil {
		return nil, fmt.Errorf("write effective configuration: %w", err)
	}
	return c, nil
}

// sources are the documents that exist, the weakest first.
func sources(root string, line cmdline.Line) ([]config.Source, error) {
	names, err := filepath.Glob(filepath.Join(root, ownerConfigDir, "*.yaml")) // in lexical order
	if err != nil {
		return nil, err
	}
	var all []config.Source
	add := func(path string) error {
		s, err := config.ReadSource(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		all = append(all, s)
		return err
	}
	if err := add(filepath.Join(root, seedConfig)); err != nil {
		return nil, err
	}
	all = append(all, config.CommandLine(line))
	for _, name := range append([]string{filepath.Join(root, ownerConfig)}, names...) {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return all, nil
}
