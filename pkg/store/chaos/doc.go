// Package chaos breaks a store of several nodes while clients use it, and
// has what they saw judged by the package history.
//
// A run is determined by one number, the seed: which faults come when, and
// what each client asks for in which order. How the two meet is up to the
// machine, so a seed that failed is to be run more than once. A failed run
// leaves all that was recorded in a directory, /tmp/cairn-chaos or
// CAIRN_CHAOS_OUTPUT; with CAIRN_CHAOS_KEEP=1 every run does.
//
// The nodes' programs, networks, disks and clocks are those of the package
// nodes. A Target says how to start a program as one of several nodes: the
// store itself, or the etcd that proves the checker.
//
//	./build.sh test chaos
//	CAIRN_CHAOS_SEED=17 CAIRN_CHAOS_RUNS=1 ./build.sh test chaos
package chaos
