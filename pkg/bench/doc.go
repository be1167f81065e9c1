// Package bench holds what the benchmarks of "build.sh bench" have in common:
// figures that were measured beside a peer in the same run, their budgets, the
// table that a person reads and the JSON file that a program reads.
package bench
