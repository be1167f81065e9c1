// Package store measures the store beside etcd: real processes of both on one
// machine, taking turns, with the requests and objects of a real apiserver.
//
// What the apiserver asks was recorded (Recording): a machine in namespaces
// boots Cairn's root tree, its apiserver's connections are led through a tap
// (tap), and a small workload is deployed, restarted and scaled. Keys, values,
// sizes and the proportions of requests are kept, ciphertext and what names the
// recording machine are not. "build.sh bench store --record" records anew.
//
// Clients reach both stores over unix sockets without TLS, members of both
// reach each other over mutually authenticated TLS on the loopback.
package store
