// Package admin is the store's own interface for operators: what it tells and
// does beside serving Kubernetes. It is HTTP/1.1 with JSON bodies on a unix
// socket for root alone, and between members on their authenticated
// connections. This package holds the messages and a client; the server is
// pkg/store/cluster.
package admin
