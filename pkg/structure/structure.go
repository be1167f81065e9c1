// Package structure holds the rules that keep the tree readable, as tests:
// which package may import which, how long a file and a function may grow,
// and what must not appear in the code of a machine that nobody attends.
package structure
