#!/usr/bin/env bash
# The front door of the project: see ./build.sh --help. What it does is in
# pkg/cmd/mkimage; this script only brings a bare Debian machine so far that
# Go can run it.
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/sbin:/sbin" && umask 022 # depmod for every user; modes of the image for none

usage() {
	cat <<-'END'
	usage: ./build.sh COMMAND [--help] [FLAGS]

	  deps            install what a build needs, by apt (as root or with sudo)
	  image [TARGET]  build the image of TARGET (amd64) into out/TARGET/
	  release [TARGET] the same, and add it to out/TARGET/release/, which machines upgrade from
	  run             build the image and boot it; see ./build.sh run --help
	  test [LANE]     run the tests: unit, native, vm, or all of these; chaos
	  bench NAME      measure beside the peer: store, cluster

	Try:
	  ./build.sh run --check     build, boot in QEMU, run a pod, fetch its page
	  ./build.sh run --native    the same root tree in namespaces, at full speed
	  ./build.sh test unit

	Outputs that take long are kept in ${CAIRN_CACHE:-~/.cache/cairn}, keyed by
	their inputs.
	END
}

packages=(
	autoconf automake bc bison build-essential ca-certificates cpio debian-archive-keyring dosfstools dpkg-dev
	e2fsprogs flex git golang-go iproute2 kmod libelf-dev libfaketime liblz4-dev libseccomp-dev libsqlite3-dev
	libssl-dev libtool libuv1-dev mtools nftables ovmf pkg-config qemu-system-x86 qemu-utils seabios xz-utils zstd
)

say() { printf '==> %s\n' "$*"; }
fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"
	elif command -v sudo >/dev/null; then sudo "$@"
	else fail "needs root or sudo to run: $*"; fi
}

missing() {
	local p
	for p in "${packages[@]}"; do
		# A Go of one's own need not be Debian's.
		if [ "$p" = golang-go ] && command -v go >/dev/null; then continue; fi
		dpkg-query -W -f '${db:Status-Abbrev}\n' "$p" 2>/dev/null | grep -q '^ii' || echo "$p"
	done
}

deps() {
	command -v apt-get >/dev/null || fail "builds on Debian 12 or 13; here apt-get is missing"
	local lacking
	mapfile -t lacking < <(missing)
	if [ "${#lacking[@]}" -gt 0 ]; then
		say "deps: install ${lacking[*]}"
		as_root apt-get update -q
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${lacking[@]}"
	fi
	toolchain
}

# toolchain puts the Go release that go.mod names on PATH. Debian's own is
# older; any Go can fetch the release as a module, checked by its sum, yet one
# before 1.21 does not run it by itself.
toolchain() {
	local want mod dir
	want=$(awk '$1 == "go" {print $2; exit}' go.mod)
	[ "$(go env GOVERSION 2>/dev/null)" = "go$want" ] && return
	dir=${CAIRN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cairn}/go$want
	if [ ! -x "$dir/bin/go" ]; then
		say "deps: fetch Go $want"
		mod=$(cd "$(mktemp -d)" && GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod download -json \
			"golang.org/toolchain@v0.0.1-go$want.linux-$(dpkg --print-architecture)" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
		[ -d "$mod" ] || fail "Go $want could not be fetched through the module proxy ($(go env GOPROXY))"
		mkdir -p "${dir%/*}" && rm -rf "$dir.new" && cp -R "$mod" "$dir.new" && chmod -R u+w "$dir.new"
		chmod -R a+x "$dir.new/bin" "$dir.new/pkg/tool"
		find "$dir.new" -name _go.mod -execdir mv {} go.mod ';'
		mv "$dir.new" "$dir"
	fi
	export PATH="$dir/bin:$PATH" GOTOOLCHAIN=local
}

mkimage() {
	deps
	export GOFLAGS="-buildvcs=false -trimpath" CGO_ENABLED=0
	say "mkimage: compile"
	go build -tags grpcnotrace -o out/mkimage ./pkg/cmd/mkimage # the trace makes it half as large again
	exec out/mkimage "$@"
}

case "${1:-}" in
	deps) case "${2:-}" in -h | --help) echo "usage: ./build.sh deps: install by apt: ${packages[*]}" ;; *) deps ;; esac ;;
	image | release | run | test | bench) mkimage "$@" ;;
	-h | --help) usage ;;
	*) usage >&2; exit 2 ;;
esac
