// Command program stands for a program of a node in tests.
package main

func main() {}
